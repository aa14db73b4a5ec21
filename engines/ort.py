"""ONNX Runtime behind the engine contract: the model file as it is, computed by a second runtime that shares no code.

Made to be compared with (`aoi parity --engines ort,…`), not to be fast: a submitted batch is run when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from engines.base import OUTPUTS, EngineError, EngineOptions, EngineSpec, Kind, Outputs, Pixels, check_batch
from engines.onnx_file import check_self_contained, read_model_file
from engines.onnx_tensors import tile_shape
from engines.precision import FLOAT

ERRORS_ONLY = 3


class OrtTicket:
    """A batch that is done when it was submitted."""

    def __init__(self, answer: Outputs | EngineError) -> None:
        self._answer = answer

    def done(self) -> bool:
        return True

    def result(self) -> Outputs:
        if isinstance(self._answer, EngineError):
            raise self._answer
        return self._answer


class OrtEngine:
    """An ONNX file on ONNX Runtime's CPU; see engines.base for the tensors."""

    def __init__(self, model: Path, kind: Kind, classes: tuple[str, ...], options: EngineOptions) -> None:
        self._options = options
        self._session: Any = None
        self._content, model_hash = read_model_file(model, options.sha256)
        check_self_contained(self._content, model)
        height, width, channels = tile_shape(self._content, model, kind, classes)
        self.spec = EngineSpec(
            engine="ort" if options.precision == FLOAT else f"ort-{options.precision}",
            kind=kind,
            device="CPU by ONNX Runtime",
            height=height,
            width=width,
            channels=channels,
            classes=classes,
            max_batch=options.max_batch,
            in_flight=options.in_flight,
            model_hash=model_hash,
            runtime=f"ONNX Runtime {ort.__version__}",
        )

    def __enter__(self) -> OrtEngine:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = self._options.threads, ERRORS_ONLY
        try:
            self._session = ort.InferenceSession(self._content, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # it raises types of its own for what it does not take
            raise EngineError(f"ONNX Runtime cannot load the {self.spec.kind}: {_line(error)}", "unfit") from error
        return self

    def __exit__(self, *exc: object) -> None:
        self._session = None

    def submit(self, batch: Pixels, notify: Callable[[], None] | None = None) -> OrtTicket:
        check_batch(self.spec, batch)
        if self._session is None:
            raise EngineError("engine is closed; enter it first", "broken")
        names = OUTPUTS[self.spec.kind]
        answer: Outputs | EngineError
        try:
            found = self._session.run(list(names), {"pixels": np.ascontiguousarray(batch)})
            answer = dict(zip(names, found, strict=True))
        except Exception as error:
            answer = EngineError(f"ONNX Runtime: {_line(error)}", "batch")
        if notify:
            notify()
        return OrtTicket(answer)


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def devices() -> list[str]:
    """What ONNX Runtime runs on here."""
    return [f"CPU (ONNX Runtime {ort.__version__})"]
