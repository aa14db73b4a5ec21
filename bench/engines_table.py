"""Engines side by side, as a person reads it; computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bench.table import three_digits


def show_engines(report: Mapping[str, Any]) -> Group:
    """What each engine is worth, beside what it says."""
    return Group(*_parts(report))


def _parts(report: Mapping[str, Any]) -> Iterator[Any]:
    yield Text(f"{report['recipe']}, median of {report['settings']['rounds']} turns")
    for engine in report["engines"]:
        yield Text(f"  {engine['engine']}: {engine['device']}, {engine['runtime']}, open in {engine['open_s']:.1f} s")
    for name, why in report["left_out"].items():
        yield Text(f"! {name} left out: {why}", "yellow")
    yield _speeds(report)
    for engine, passed in report["parity"]["promoted"].items():
        why = "; ".join(report["parity"]["refusals"][engine])
        said = "judges as the reference does" if passed else f"judges otherwise: {why}"
        yield Text(f"{'✓' if passed else '✗'} {engine} {said}", "green" if passed else "red")
    yield from _ceilings(report["ceilings"])
    for row in report["line"]:
        yield Text(f"line with {row['engine']}: " + _line(row))


def _speeds(report: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for number, name in enumerate(("engine", "stage", "batch", "tiles/s", "±", "ms/batch", "GFLOP/s", "× reference")):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    first = {(row["stage"], row["batch"]): row["tiles_per_s"] for row in reversed(report["speed"])}
    last: tuple[str, str] = ("", "")
    for row in report["speed"]:
        new = (row["engine"], row["stage"])
        if last[0] and new[0] != last[0]:
            table.add_section()
        flops = "–" if row["flop_per_s"] is None else three_digits(row["flop_per_s"] / 1e9)
        table.add_row(
            row["engine"] if new[0] != last[0] else "",
            row["stage"] if new != last else "",
            str(row["batch"]),
            three_digits(row["tiles_per_s"]),
            f"{100 * row['spread']:.0f}%",
            three_digits(row["batch_ms"]),
            flops,
            f"{three_digits(row['tiles_per_s'] / first[row['stage'], row['batch']])}×",
        )
        last = new
    return table


def _ceilings(found: Mapping[str, Any]) -> Iterator[Text]:
    if "missing" in found:
        yield Text(f"no GPU measured: {'; '.join(found['missing'])}", "dim")
        return
    copies = (f"{found[key] / 1e9:.1f} GB/s" for key in ("to_device_bytes_per_s", "to_host_bytes_per_s"))
    flops = (f"{found[f'{name}_flop_per_s'] / 1e12:.1f} TFLOP/s in {name}" for name in ("fp32", "fp16"))
    yield Text(f"{found['gpu']['name']} at best: {' to it, '.join(copies)} from it; {', '.join(flops)}")


def _line(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return f"failed: {row['failed']}"
    p99 = row["latency_ms"]["p99"] if isinstance(row.get("latency_ms"), Mapping) else None
    at = (
        f"at {row['load']:.0f} % load, p99 {p99:.1f} ms" if row.get("load") and p99 is not None else "as fast as it can"
    )
    return f"{row['frames_per_s']:.0f} frames/s {at}"
