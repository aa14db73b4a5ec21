"""How a network is taught: seeded steps, looks at the validation pictures, checkpoints; it knows no network.

A training that was killed goes on where its last checkpoint was, and ends with the same weights as one that was
not: step, optimiser, averages and best weights are kept, and every step's tiles and dropout follow from the seed
and the step's number alone.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from engines.datasets.labelled import DatasetError
from engines.training.draw import BalancedDraw, Batch, batches
from engines.training.schedule import TIMED, Schedule, affordable, rate

Weights = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """What is taught: where tiles come from, what is minimised, and what says how good the network is.

    `score_of` is called in evaluation mode without gradients; higher is better. `taught` are the parameters that
    come already taught.
    """

    draw: BalancedDraw
    loss_of: Callable[[nn.Module, Batch, float], Tensor]  # network, batch, progress 0 … 1
    score_of: Callable[[nn.Module], float]
    taught: frozenset[str] = frozenset()
    device: str = "cpu"


@dataclass
class State:
    """Everything a training is at a step."""

    step: int = 0
    steps: int = 0  # in all
    best_score: float = -math.inf
    best_look: int = 0
    average: Weights = field(default_factory=dict)
    best: Weights = field(default_factory=dict)
    history: list[tuple[int, float, float]] = field(default_factory=list)  # step, loss, score


def fit(net: nn.Module, task: Task, schedule: Schedule, checkpoint: Path, console: Console | None = None) -> State:
    """Teach `net` in place and leave it with its best validated weights; returns how it went.

    Goes on from `checkpoint` if that file is there; it is rewritten at every look and removed by nobody here.
    Raises DatasetError when the loss is not a number any more, and for a checkpoint that is not this training's.
    """
    net.to(task.device, memory_format=torch.channels_last)
    optimiser = _optimiser(net, task, schedule)
    state = _resumed(net, optimiser, checkpoint, task.device) or State(steps=schedule.steps, average=_copied(net))
    with _bar(console) as bar:
        _teach(net, optimiser, task, schedule, state, checkpoint, bar)
    net.load_state_dict(state.best)
    net.eval()
    return state


def _teach(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    task: Task,
    schedule: Schedule,
    state: State,
    checkpoint: Path,
    bar: Progress,
) -> None:
    started, first, losses = time.monotonic(), state.step, []
    line = bar.add_task("training", total=state.steps, completed=state.step)
    if first:
        bar.console.print(f"going on from step {first} of {state.steps}", highlight=False)
    if _ended(state, schedule):
        return
    source = batches(task.draw, schedule.batch, schedule.seed, range(state.step, state.steps))
    look_every = max(1, state.steps // schedule.looks)
    for batch in source:
        losses.append(_step(net, optimiser, task, schedule, state, batch))
        if state.step == TIMED and schedule.minutes:
            state.steps = affordable(schedule, (time.monotonic() - started) / (state.step - first))
            look_every = max(1, state.steps // schedule.looks)
        bar.update(line, total=state.steps, completed=state.step)
        if state.step % look_every == 0 or state.step == state.steps:
            loss = sum(losses) / len(losses)
            losses.clear()
            _look(net, task, schedule, state, loss, bar)
            _save(net, optimiser, state, checkpoint)
        if _ended(state, schedule):
            if state.step < state.steps:
                bar.console.print(f"no better for {schedule.patience} looks: ended early", highlight=False)
            return


def _ended(state: State, schedule: Schedule) -> bool:
    """Asked after a look, and of a checkpoint, which may be the last one of a training that was through."""
    return state.step >= state.steps or len(state.history) - state.best_look >= schedule.patience


def _step(
    net: nn.Module, optimiser: torch.optim.Optimizer, task: Task, schedule: Schedule, state: State, batch: Batch
) -> float:
    torch.manual_seed(schedule.seed * 1_000_003 + state.step)  # dropout
    progress = state.step / state.steps
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * rate(progress)
    net.train()
    with half_precision(task.device):
        loss = task.loss_of(net, batch.to(task.device), progress)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    slope, value = float(nn.utils.clip_grad_norm_(net.parameters(), 5.0)), loss.item()
    if not math.isfinite(value + slope):
        said = f"the loss of step {state.step + 1} is {value:g}, its slope {slope:g}"
        raise DatasetError(f"{said}; train with a lower --rate")
    optimiser.step()
    state.step += 1
    _averaged(state, net, schedule.average)
    return value


def _look(net: nn.Module, task: Task, schedule: Schedule, state: State, loss: float, bar: Progress) -> None:
    """Validate the averaged weights and keep them if they are the best."""
    own = _copied(net)
    net.load_state_dict(state.average)
    net.eval()
    with torch.no_grad():
        score = task.score_of(net)
    if not math.isfinite(score):
        raise DatasetError(f"the validation score of step {state.step} is {score:g}; train with a lower --rate")
    state.history.append((state.step, loss, score))
    bar.console.print(f"step {state.step:5d}  loss {loss:.4f}  validation {score:.4f}", highlight=False)
    if score > state.best_score:
        state.best_score, state.best_look, state.best = score, len(state.history), _copied(net)
    net.load_state_dict(own)


def half_precision(device: str) -> AbstractContextManager[Any]:
    """bfloat16 for the heavy layers where the device is faster with it, or nothing."""
    fast = device.startswith("cuda") or getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    context: AbstractContextManager[Any] = nullcontext()
    return torch.autocast(device.split(":", maxsplit=1)[0], torch.bfloat16) if fast else context


def _optimiser(net: nn.Module, task: Task, schedule: Schedule) -> torch.optim.Optimizer:
    named = [(name, weights) for name, weights in net.named_parameters() if weights.requires_grad]
    peaks = (schedule.learning_rate, schedule.learning_rate * schedule.taught_share)
    groups = [
        {"params": [weights for name, weights in named if (name in task.taught) == taught], "peak": peak, "lr": peak}
        for taught, peak in enumerate(peaks)
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=schedule.decay)


def _copied(net: nn.Module) -> Weights:
    return {name: values.detach().clone() for name, values in net.state_dict().items()}


@torch.no_grad()
def _averaged(state: State, net: nn.Module, average: float) -> None:
    """Move the averages on; early ones follow faster, so that the start is soon forgotten."""
    kept = min(average, (state.step + 1) / (state.step + 10)) if average else 0.0
    for name, values in net.state_dict().items():
        if values.dtype.is_floating_point:
            state.average[name].lerp_(values, 1 - kept)
        else:
            state.average[name].copy_(values)


def _save(net: nn.Module, optimiser: torch.optim.Optimizer, state: State, checkpoint: Path) -> None:
    """In one step: a training that is killed while it writes finds the checkpoint before this one."""
    beside = checkpoint.with_suffix(".part")
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict(), "state": vars(state)}, beside)
        os.replace(beside, checkpoint)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of torch
        raise DatasetError(f"{checkpoint} cannot be written; make room, or choose another folder") from error


def _resumed(net: nn.Module, optimiser: torch.optim.Optimizer, checkpoint: Path, device: str) -> State | None:
    if not checkpoint.is_file():
        return None
    try:
        kept = torch.load(checkpoint, map_location="cpu", weights_only=True)
        net.load_state_dict(kept["net"])
        optimiser.load_state_dict(kept["optimiser"])
        state = State(**kept["state"])
    except Exception as error:  # torch raises what it likes for bytes that are none of its own
        raise DatasetError(f"{checkpoint} is of another training; remove it, or choose another folder") from error
    for weights in (state.average, state.best):
        weights.update({name: values.to(device) for name, values in weights.items()})
    return state


def _bar(console: Console | None) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, *left, console=console or Console(stderr=True))
