"""A trained model's recipe and card, written as a person would: plain TOML to go on editing, and Markdown to file.

It decides no threshold: the recipe starts with open rules, and whoever has measured puts the chosen ones in.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.datasets.labelled import Dataset, Sample
from pipeline.errors import DiskError
from pipeline.evaluation import Evaluation, Tried
from pipeline.evaluation_json import as_json

SMALLEST_PX = 4.0  # that a defect's side keeps after scaling


@dataclass(frozen=True)
class Engine:
    """One engine file of the folder."""

    kind: str  # classifier or segmenter
    file: str
    sha256: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Contents:
    """What a recipe is made of, before its rules are chosen."""

    name: str
    mode: str
    engines: Sequence[Engine]
    scale: float
    overlap: int
    contrast: str
    template: bool
    threshold: float  # of the classifier, to begin with


def recipe_text(contents: Contents) -> str:
    """`recipe.toml`."""
    tables = [f'name = {_quoted(contents.name)}\nmode = "{contents.mode}"']
    tables.append(f"[optics]\nsmallest_defect_px = {max(2.0, SMALLEST_PX / contents.scale):g}")
    picture = [
        f"scale = {float(contents.scale)!r}",
        f"overlap = {contents.overlap}",
        f'contrast = "{contents.contrast}"',
    ]
    tables.append("\n".join(["[picture]", *picture]))
    if contents.template:
        tables.append(
            '[template]\nfolder = "templates"  # put <reference>.png here, or file = "template.png" for one\n'
        )
    for engine in contents.engines:
        classes = ", ".join(map(_quoted, engine.classes))
        lines = [f"[{engine.kind}]", f'file = "{engine.file}"', f'sha256 = "{engine.sha256}"', f"classes = [{classes}]"]
        if engine.kind == "classifier":
            lines.append(f"threshold = {contents.threshold!r}")
        tables.append("\n".join(lines))
    tables.append("[judge]\nmin_area_px = 1\nmin_score = 0.0")
    tables.append('[batching]\nengine = "cpu"\nmax_batch = 8')
    return "\n\n".join(tables) + "\n"


def _quoted(name: str) -> str:
    """A TOML basic string, whose escapes are those of JSON."""
    return json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")


def card_text(
    contents: Contents,
    dataset: Dataset,
    sides: Mapping[str, Sequence[Sample]],
    measured: Evaluation,
    tried: Tried,
    facts: Mapping[str, str],
) -> str:
    """`card.md`: what taught it, how, what it was worth on the side that chose its rules, and what that means."""
    lines = [f"# {contents.name}", "", facts["what"], "", "| file | kind | classes | sha256 |", "|---|---|---|---|"]
    lines += [f"| {e.file} | {e.kind} | {', '.join(e.classes)} | `{e.sha256}` |" for e in contents.engines]
    lines += [
        "",
        "## Data",
        f"Read as {dataset.form}; {len(dataset.samples)} pictures.",
        "",
        *_sides_table(dataset, sides),
        *(["", facts["left out"]] if facts["left out"] else []),
    ]
    lines += ["", "## Command", "```", facts["command"], "```", facts["training"]]
    lines += [
        "",
        "## On the validation pictures, which chose checkpoint and rules (so: too rosy)",
        *_figures(measured, tried),
    ]
    lines += [
        "",
        "Measure it on pictures that it has not seen (MODEL: this folder):",
        "```",
        facts["evaluate"],
        "```",
        "",
    ]
    return "\n".join(lines)


def _sides_table(dataset: Dataset, sides: Mapping[str, Sequence[Sample]]) -> list[str]:
    """Pictures and parts per side and class; a class that only the labels tell counts under `by label`."""
    names = [*dataset.classes, "by label"]
    rows = ["| side | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for side, samples in sides.items():
        pictures = Counter(_name(dataset, sample) for sample in samples)
        parts = Counter(name for name, _ in {(_name(dataset, sample), sample.group) for sample in samples})
        cells = [f"{pictures[name]} ({parts[name]})" if pictures[name] else "–" for name in names]
        rows.append(f"| {side}, pictures (parts) | " + " | ".join(cells) + " |")
    return rows


def _name(dataset: Dataset, sample: Sample) -> str:
    return "by label" if sample.class_index is None else dataset.classes[sample.class_index]


def _figures(measured: Evaluation, tried: Tried) -> list[str]:
    facts = as_json(measured, tried)
    lines = [f"Escapes {measured.escape}, overkill {measured.overkill}, REVIEW {measured.review}."]
    for key, says in (
        ("dice", "Dice, defect against good, pooled"),
        ("miou", "mean IoU of the defect classes"),
        ("accuracy", "accuracy"),
        ("f1", "F1 of boxes"),
        ("map", "mAP of boxes"),
    ):
        if isinstance(facts.get(key), float):
            lines.append(f"- {says}: {facts[key]:.3f}")
    found = [f"{name} {rate}" for name, rate in measured.found_per_class.items()]
    return [*lines, "- found, by class: " + "; ".join(found)] if found else lines


def write_text(path: Path, text: str) -> None:
    """Raises DiskError when the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}; check space and rights") from error


def evaluate_command(form: str, good: str, classes: str, side: str) -> str:
    """The line that measures the model on one side of pictures in a data folder that is read like this."""
    said = [("--form", form), ("--good", good), ("--classes", classes), ("--side", side)]
    return shlex.join(
        ["aoi", "evaluate", "MODEL", "--data", "DATA", *(word for pair in said if pair[1] for word in pair)]
    )
