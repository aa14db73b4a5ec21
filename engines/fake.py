"""A deterministic engine without any dependency: for tests, and to measure everything but inference.

Its model file is a small JSON object, e.g. {"height": 64, "width": 64, "channels": 1, "delay_ms": 0}. A pixel
of at least `bright` (default 250) is a defect of class 1; a tile with one scores 1.0 for class 1. With
`poison` set, a batch that holds a tile whose first pixel has that value fails, as a real engine may. In place of
an ONNX file, which it does not read, it takes tiles of 256×256×1: so any recipe can be measured without inference.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engines.base import EngineError, EngineOptions, EngineSpec, Kind, Outputs, Pixels, check_batch
from engines.onnx_file import read_model_file

DEFAULTS = {"height": 64, "width": 64, "channels": 1, "delay_ms": 0.0, "bright": 250, "poison": -1}


class FakeTicket:
    """Done when its delay has passed; the answer is computed when asked for."""

    def __init__(self, answer: Callable[[], Outputs], delay_s: float, notify: Callable[[], None] | None) -> None:
        self._answer, self._done, self._notify = answer, threading.Event(), notify
        if delay_s > 0:
            timer = threading.Timer(delay_s, self._finish)
            timer.daemon = True
            timer.start()
        else:
            self._finish()

    def _finish(self) -> None:
        self._done.set()
        if self._notify:
            self._notify()

    def done(self) -> bool:
        return self._done.is_set()

    def result(self) -> Outputs:
        self._done.wait()
        return self._answer()


class FakeEngine:
    """See the module's text; the same contract as every engine."""

    def __init__(self, model: Path, kind: Kind, classes: tuple[str, ...], options: EngineOptions) -> None:
        content, model_hash = read_model_file(model, options.sha256)
        self._facts = _facts(model, content)
        self._open = False
        self.spec = EngineSpec(
            engine="fake",
            kind=kind,
            device="none",
            height=int(self._facts["height"]),
            width=int(self._facts["width"]),
            channels=int(self._facts["channels"]),
            classes=classes,
            max_batch=options.max_batch,
            in_flight=options.in_flight,
            model_hash=model_hash,
        )

    def __enter__(self) -> FakeEngine:
        self._open = True
        return self

    def __exit__(self, *exc: object) -> None:
        self._open = False

    def submit(self, batch: Pixels, notify: Callable[[], None] | None = None) -> FakeTicket:
        if not self._open:
            raise EngineError("engine is closed; enter it first", "broken")
        check_batch(self.spec, batch)
        return FakeTicket(lambda: self._answer(batch), self._facts["delay_ms"] / 1000, notify)

    def _answer(self, batch: Pixels) -> Outputs:
        if np.any(batch[:, 0, 0, 0] == self._facts["poison"]):
            raise EngineError("a tile of this batch is poison", "batch")
        bright = np.max(batch, axis=3) >= self._facts["bright"]
        if self.spec.kind == "classifier":
            scores = np.zeros((len(batch), len(self.spec.classes)), dtype=np.float32)
            defective = bright.any(axis=(1, 2))
            scores[:, 0], scores[:, 1] = ~defective, defective
            return {"scores": scores}
        return {"labels": bright.astype(np.uint8), "confidence": np.full(bright.shape, 255, dtype=np.uint8)}


def _facts(model: Path, content: bytes) -> dict[str, Any]:
    if model.suffix == ".onnx":
        return {**DEFAULTS, "height": 256, "width": 256}
    try:
        facts = {**DEFAULTS, **json.loads(content)}
    except (ValueError, TypeError) as error:
        raise EngineError(f"{model} is no fake model: {error}; see engines/fake.py for its form", "unfit") from error
    unknown = facts.keys() - DEFAULTS.keys()
    if unknown:
        raise EngineError(f"{model}: unknown key {sorted(unknown)[0]!r}; known: {', '.join(DEFAULTS)}", "unfit")
    return facts
