"""A line that runs, and what is read of its metrics."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families as parse

from pipeline.messages import Frame, Verdict
from pipeline.stream import Delivery

Sample = tuple[str, frozenset[tuple[str, str]]]


@contextmanager
def process(*words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command with `--metrics 0` and the address that it names on stderr."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words), "--metrics", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as started:
        try:
            assert started.stderr
            told = started.stderr.readline()
            assert told.startswith("metrics at http://127.0.0.1:"), told + started.stderr.read()
            yield started, told.split()[-1]
        finally:
            started.kill()


def get(url: str, accept: str = "") -> str:
    with urlopen(Request(url, headers={"Accept": accept}), timeout=20) as answer:
        return str(answer.read().decode())


def health(url: str) -> tuple[int, str]:
    try:
        with urlopen(url.replace("/metrics", "/healthz"), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def numbers(text: str) -> dict[Sample, float]:
    return {(s.name, frozenset(s.labels.items())): s.value for family in parse(text) for s in family.samples}


def total(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of this name that have these labels; fails when there is none."""
    found = [n for (of, has), n in numbers(text).items() if of == name and labels.items() <= dict(has).items()]
    assert found, f"no {name} {labels}"
    return sum(found)


@dataclass
class Said:
    """What a worker and a producer said after a folder had gone through, and what was to be said."""

    worker: str
    producer: str
    open_metrics: str
    audit: dict[str, Any]
    verdicts: list[Verdict]
    line: str


def done(
    judgement: Any = "OK", reason: str = "", deadline_ns: int = 0, deliveries: int = 1
) -> tuple[Delivery, Verdict]:
    """A frame that took 1 ms to the worker, 2 to a batch, 4 in the engine; due 10 ms before it was offered."""
    s = 10**9
    frame = Frame(
        frame_id="f",
        source="cam",
        session="s",
        sequence=0,
        triggered_ns=s,
        offered_ns=s + 10**7,
        deadline_ns=deadline_ns,
    )
    delivery = Delivery(frame, "0-1", b"", 1, frame.offered_ns + 10**6, deliveries)
    verdict = Verdict(
        frame=frame,
        judgement=judgement,
        reason=reason,
        deliveries=deliveries,
        batch_size=4,
        received_ns=delivery.received_ns,
        batched_ns=delivery.received_ns + 2 * 10**6,
        inferred_ns=delivery.received_ns + 6 * 10**6,
    )
    return delivery, verdict


def names(text: str) -> set[str]:
    return {name for name, _ in numbers(text)}
