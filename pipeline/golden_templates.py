"""The golden templates of a recipe: which one a frame is compared with, read once and kept; it compares nothing.

A frame says by its `reference` which template is its own; that is an id and never a path. One that says nothing is
compared with the recipe's `file`. Whatever the name or a link leads to must lie below the model folder, so that a
folder is all there is to copy and to trust. Changed files are seen after a restart, as engine files are.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.errors import RecipeError, WireError
from pipeline.image_header import declared_size, kind_of
from pipeline.preprocess import grey8
from pipeline.recipe import Recipe
from pipeline.registration import TemplateError

Gray8 = npt.NDArray[np.uint8]

MAX_KEPT_BYTES = 256 * 1024 * 1024  # decoded; what was used longest ago goes first
LARGEST_FILE = 64 * 1024 * 1024  # bytes
REFERENCE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


class GoldenTemplates:
    """Templates by the frame's reference, uint8 [H, W]; may be asked from any thread."""

    def __init__(self, recipe: Recipe, most_bytes: int = MAX_KEPT_BYTES) -> None:
        """Raises RecipeError when the recipe's file or folder is not there or is not what it should be."""
        self._recipe, self._most_bytes = recipe, most_bytes
        self._kept: OrderedDict[Path, Gray8] = OrderedDict()
        self._lock = threading.Lock()
        try:
            if recipe.template.file:
                self.of("")
            if recipe.template.folder and not self._below(recipe.template.folder).is_dir():
                raise TemplateError(f"folder {recipe.template.folder!r} is missing")
        except TemplateError as error:
            raise RecipeError(f"recipe {recipe.name}: [template] {error}; it belongs into the model folder") from error

    @property
    def kept_bytes(self) -> int:
        """What the templates in memory take."""
        return sum(template.nbytes for template in self._kept.values())

    def of(self, reference: str) -> Gray8:
        """The template of a frame with this reference; read-only. Raises TemplateError with the reason."""
        path = self._below(self._name(reference))
        with self._lock:
            template = self._kept.get(path)
            if template is None:
                template = self._kept[path] = self._read(path)
            self._kept.move_to_end(path)
            while len(self._kept) > 1 and self.kept_bytes > self._most_bytes:
                self._kept.popitem(last=False)
        return template

    def _name(self, reference: str) -> str:
        """Path of the file below the model folder."""
        wanted = self._recipe.template
        if not reference:
            if not wanted.file:
                raise TemplateError("the frame names no golden template, and the recipe has no template.file")
            return wanted.file
        if not REFERENCE.fullmatch(reference):
            raise TemplateError(
                f"reference {reference[:64]!r} is no id of a template (A-Z a-z 0-9 . _ -, no dot first)"
            )
        if wanted.folder:
            return f"{wanted.folder}/{reference}.png"
        if reference not in (Path(wanted.file).stem, Path(wanted.file).name):
            raise TemplateError(f"the frame names template {reference!r}, and the recipe has no template.folder for it")
        return wanted.file

    def _below(self, name: str) -> Path:
        folder = self._recipe.folder.resolve()
        path = (folder / name).resolve()
        if folder not in path.parents:
            raise TemplateError(f"{name!r} leads out of the model folder")
        return path

    def _read(self, path: Path) -> Gray8:
        try:
            if not path.is_file():
                raise TemplateError(f"golden template {path.name!r} is missing")
            if (size := path.stat().st_size) > LARGEST_FILE:
                raise TemplateError(f"golden template {path.name!r} has {size} bytes, more than {LARGEST_FILE}")
            template = grey8(_decoded(path.read_bytes()), self._recipe)
        except (OSError, ValueError, WireError, cv2.error) as error:
            reason = str(error).splitlines()[0]
            raise TemplateError(f"golden template {path.name!r} cannot be read: {reason}") from error
        template.flags.writeable = False
        return template


@lru_cache(maxsize=2)
def templates_of(recipe: Recipe) -> GoldenTemplates:
    """The templates of a recipe, the same ones each time. Raises RecipeError as they do."""
    return GoldenTemplates(recipe)


def _decoded(data: bytes) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """The image as it is in the file, after a look at the size it says it has; ValueError when it is none."""
    kind = kind_of(data)
    if not kind:
        raise ValueError("it is no image")
    declared_size(data, kind)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise ValueError("it does not decode to samples of 8 or 16 bits")
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2GRAY if image.shape[2] == 4 else cv2.COLOR_BGR2GRAY)
    return np.asarray(image)
