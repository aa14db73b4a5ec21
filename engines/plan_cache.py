"""Compiled networks kept from run to run: a plan and its sidecar under one name; decides whether a plan may be loaded.

A plan belongs to exactly one release of TensorRT, one kind of GPU and one driver, and says nothing of itself that
could be checked before it is loaded. So the facts it was made from stand beside it in JSON, and its own hash; its name
is a hash of those facts. What does not match is not loaded but built again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.base import EngineError
from engines.batch_profiles import Profile
from engines.gpu import GpuFacts

log = logging.getLogger("aoi.engines")
FORM = 1  # of what we build out of a model; another number, and every plan is built again


@dataclass(frozen=True)
class PlanFacts:
    """Everything that a plan was made from."""

    model_hash: str
    precision: str
    gpu: GpuFacts
    profiles: tuple[Profile, ...]
    form: int = FORM

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "profiles": [asdict(each) for each in self.profiles]}

    @property
    def key(self) -> str:
        """The plan's name: 32 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()[:32]


def default_folder() -> Path:
    """AOI_PLANS, or a folder of the user's cache."""
    if told := os.environ.get("AOI_PLANS"):
        return Path(told)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aoi" / "plans"


class PlanCache:
    """Plans in one folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def find(self, facts: PlanFacts) -> bytes | None:
        """The plan of exactly these facts, whole; None: there is none."""
        plan, sidecar = self._paths(facts)
        try:
            told, content = json.loads(sidecar.read_text("utf-8")), plan.read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("plan %s cannot be read (%s); it is built again", plan, error)
            return None
        digest = hashlib.sha256(content).hexdigest()
        if not isinstance(told, Mapping) or told.get("facts") != facts.as_json() or told.get("sha256") != digest:
            log.warning("plan %s does not match its sidecar; it is built again", plan)
            return None
        return content

    def keep(self, facts: PlanFacts, content: bytes) -> None:
        """The plan first, then the sidecar without which it is nothing. EngineError when it cannot be written."""
        plan, sidecar = self._paths(facts)
        told = {"facts": facts.as_json(), "sha256": hashlib.sha256(content).hexdigest()}
        self.write(plan, content)
        self.write(sidecar, json.dumps(told, indent=1).encode())

    def drop(self, facts: PlanFacts) -> None:
        """A plan that its runtime refuses."""
        for path in self._paths(facts):
            path.unlink(missing_ok=True)

    def timings(self, gpu: GpuFacts) -> Path:
        """Where the builder's measurements of one GPU and release lie: they outlive models and drivers."""
        name = hashlib.sha256(repr((gpu.name, gpu.capability, gpu.product, gpu.version)).encode()).hexdigest()[:16]
        return self.folder / f"{name}.timings"

    def write(self, path: Path, content: bytes) -> None:
        """In one step: several workers may build the same plan."""
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(content)
            os.replace(beside, path)
        except OSError as error:
            mend = "make room, or set AOI_PLANS to a folder that can be written"
            raise EngineError(f"{path} cannot be written: {error.strerror}; {mend}", "missing") from error

    def _paths(self, facts: PlanFacts) -> tuple[Path, Path]:
        return self.folder / f"{facts.key}.plan", self.folder / f"{facts.key}.json"


def plan_of(cache: PlanCache, facts: PlanFacts, build: Callable[[], bytes], load: Callable[[bytes], Any]) -> Any:
    """The network of these facts: out of the cache, or built and kept. Raises EngineError when it cannot be loaded."""
    content = cache.find(facts)
    network = None if content is None else load(content)
    if network is None:
        if content is not None:
            log.warning("plan %s is refused by %s; it is built again", facts.key, facts.gpu.product)
            cache.drop(facts)
        content = build()
        cache.keep(facts, content)
        network = load(content)
    if network is None:
        raise EngineError(f"{facts.gpu.product} {facts.gpu.version} refuses the plan that it has just built", "unfit")
    return network
