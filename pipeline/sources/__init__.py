"""Where frames come from: one file each, every one an iterator of frames.

`panel:` is the simulator, `camera:INDEX` and URLs a camera, a file a video, anything else a folder.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from pipeline.messages import Frame, PixelFormat
from pipeline.sources.panel import PanelSimulator
from pipeline.sources.stamp import Stamp

SOURCES = {
    "directory": "pipeline.sources.directory:open_directory",
    "camera": "pipeline.sources.camera:open_camera",
    "panel": "pipeline.sources.panel_frames:open_panel",
}


@dataclass(frozen=True)
class SourceOptions:
    """What a user may say of a source; each kind takes what concerns it."""

    pattern: str = ""  # directory
    names: Sequence[str] = ()  # directory
    watch: bool = False  # directory
    form: PixelFormat | None = None  # directory, camera: how its images travel
    count: int = 0  # panel; 0: without end
    simulator: PanelSimulator = field(default_factory=PanelSimulator)  # panel
    stop: threading.Event | None = None


def kind_of(address: str) -> str:
    """Which of SOURCES an address means."""
    if address.startswith("panel:"):
        return "panel"
    is_camera = address.startswith(("camera:", "rtsp://", "http://", "https://", "/dev/video"))
    return "camera" if is_camera or Path(address).is_file() else "directory"


def default_name(address: str) -> str:
    """A source's name when the user gives none: what it reads from, in letters a frame id may have."""
    name = Path(address).resolve().name if kind_of(address) == "directory" else kind_of(address)
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in name)[:48] or "source"


def open_source(address: str, stamp: Stamp, options: SourceOptions | None = None) -> Iterable[Frame]:
    """The frames of an address. Raises SourceError where nothing can be read from it."""
    module, attribute = SOURCES[kind_of(address)].split(":")
    source: Iterable[Frame] = getattr(import_module(module), attribute)(address, stamp, options or SourceOptions())
    return source
