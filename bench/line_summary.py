"""From the verdicts of one run to its figures; pure. Everything is computed from the verdicts' own timestamps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bench.percentiles import Spread, spread
from bench.report import IN_TIME, STAGES, Cost, LineRun
from pipeline.errors import TooShortError
from pipeline.messages import Verdict
from pipeline.stream import FAIL_SAFE_REASONS

WARMUP_SHARE = 0.1  # of a run's frames, the first that were settled; not counted
Moments = npt.NDArray[np.int64]  # [n, 6] ns, columns as report.STEPS; 0: this step was never reached


@dataclass
class Seen:
    """What the reader keeps of each verdict."""

    rows: list[tuple[int, ...]] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)
    judgements: Counter[str] = field(default_factory=Counter)
    in_time: Counter[str] = field(default_factory=Counter)

    def add(self, v: Verdict) -> None:
        frame = v.frame
        steps = (frame.triggered_ns, frame.offered_ns, v.received_ns, v.batched_ns, v.inferred_ns, v.settled_ns)
        self.rows.append(steps)
        self.batch_sizes.append(v.batch_size)
        self.judgements[v.judgement] += 1
        if frame.deadline_ns:
            self.in_time[_punctuality(v)] += 1

    def __len__(self) -> int:
        return len(self.rows)

    def moments(self) -> Moments:
        """In the order of settlement."""
        moments: Moments = np.array(self.rows, np.int64).reshape(-1, len(STAGES) + 1)
        return moments[np.argsort(moments[:, -1], kind="stable")]


def summarise(seen: Seen, batch: int, costs: Mapping[str, Cost], load: float = 0.0, rate: float = 0.0) -> LineRun:
    """The figures of one run; `rate` 0 means the closed loop."""
    moments = seen.moments()
    warmup = int(len(moments) * WARMUP_SHARE)
    counted = moments[warmup:]
    sizes = [size for size in seen.batch_sizes if size]
    return LineRun(
        batch=batch,
        loop="open" if rate else "closed",
        load=load,
        rate=rate,
        frames=len(seen),
        warmup=warmup,
        frames_per_s=frames_per_s(moments[:, -1], warmup),
        mean_batch=sum(sizes) / len(sizes) if sizes else 0.0,
        judgements=dict(seen.judgements),
        latency_ms=spread(latencies_ms(counted)) if rate else Spread(0),
        stages_ms=stages_ms(counted),
        costs=costs,
        in_time={name: seen.in_time[name] for name in IN_TIME} if seen.in_time else {},
    )


def _punctuality(verdict: Verdict) -> str:
    frame = verdict.frame
    if verdict.settled_ns > frame.deadline_ns:
        return "offered_late" if frame.offered_ns > frame.deadline_ns else "missed"
    return "fail_safe" if verdict.reason in FAIL_SAFE_REASONS else "judged"


def latencies_ms(moments: Moments) -> npt.NDArray[np.float64]:
    """From the scheduled trigger to the settlement."""
    return np.asarray((moments[:, -1] - moments[:, 0]) / 1e6)


def stages_ms(moments: Moments) -> dict[str, Spread]:
    """How long each step took, of the frames that took every step."""
    whole = moments[(moments > 0).all(axis=1)]
    steps = np.diff(whole, axis=1) / 1e6
    return {name: spread(steps[:, column]) for column, name in enumerate(STAGES)}


def frames_per_s(settled_ns: npt.NDArray[np.int64], warmup: int) -> float:
    """Frames settled after a settlement, up to and with the last one, over the time between them.

    Many frames share a settlement, so its own frames are left out: counting them would count them for no time.
    """
    since = settled_ns[warmup]
    later = settled_ns[settled_ns > since]
    if not later.size:
        raise TooShortError("the run was over in one settlement: give it more --seconds or --frames")
    return float(later.size * 1e9 / (later[-1] - since))
