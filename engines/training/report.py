"""The figures of a model folder on a set of pictures, as the tables a card shows; it trains nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from engines.training.cascade import Answers, Rules, ask_networks, find_defects, judge, stitch
from engines.training.dataset import Picture, Pixels
from engines.training.measure import Overlap, Tally, area_under_roc
from engines.training.tiles import AMBIGUOUS, TileShape, scaled, tiles_of

Say = Callable[[str], None]
Planes = list[tuple[Pixels, Pixels]]


@dataclass(frozen=True, eq=False)
class Measured:
    """Pictures, and what the networks say about them."""

    pictures: list[Picture]
    answers: list[Answers]
    classes: tuple[str, ...]
    shape: TileShape


def measure(pictures: list[Picture], model: Path, classes: tuple[str, ...], shape: TileShape) -> Measured:
    """Ask both networks about every tile of every picture."""
    return Measured(pictures, list(ask_networks(pictures, model, classes, shape)), classes, shape)


def stitched(measured: Measured, threshold: float) -> Planes:
    """Labels and confidence of every picture, the tiles below the threshold empty."""
    return [stitch(answers, threshold) for answers in measured.answers]


def judgements(measured: Measured, planes: Planes, rules: Rules) -> Tally:
    """What the cascade would decide about every picture; `planes` are stitched at the rules' threshold."""
    tally = Tally(measured.classes)
    for picture, answers, plane in zip(measured.pictures, measured.answers, planes, strict=True):
        defects = find_defects(*plane, rules, measured.classes)
        tally.add(picture.class_index, judge(answers, defects, rules))
    return tally


def overlap(measured: Measured, threshold: float) -> Overlap:
    """Pixels of the picture; tiles below the threshold count as background."""
    total = Overlap(len(measured.classes))
    for picture, answers in zip(measured.pictures, measured.answers, strict=True):
        total.add(stitch(answers, threshold)[0], picture.labels)
    return total


def write_report(measured: Measured, rules: Rules, sweep: bool, say: Say) -> None:
    """Tables in Markdown: tiles, pictures, pixels; with `sweep`, pictures over many rules instead."""
    if sweep:
        _sweep(measured, rules, say)
        return
    _tiles(measured, rules.threshold, say)
    _pictures(judgements(measured, stitched(measured, rules.threshold), rules), measured.classes, say)
    _pixels(measured, rules.threshold, say)


def _rate(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})" if whole else "none of that kind"


def _tiles(measured: Measured, threshold: float, say: Say) -> None:
    """The classifier alone, tile by tile; a tile's truth is its own part of the mask."""
    truth, scores = [], []
    for picture, answers in zip(measured.pictures, measured.answers, strict=True):
        if picture.unmarked:
            continue
        for tile, score in zip(
            tiles_of(scaled(picture, measured.shape.scale), measured.shape), answers.defect, strict=True
        ):
            if tile.class_index != AMBIGUOUS:
                truth.append(tile.class_index > 0)
                scores.append(score)
    bad, score = np.array(truth), np.array(scores)
    suspect = score >= threshold
    say(f"Tiles, classifier alone at {threshold}: area under ROC {area_under_roc(bad, score):.4f}; ")
    say(f"defective below the threshold {_rate(int((bad & ~suspect).sum()), int(bad.sum()))}; ")
    say(f"good at or above it {_rate(int((~bad & suspect).sum()), int((~bad).sum()))}.\n")


def _pictures(tally: Tally, classes: tuple[str, ...], say: Say) -> None:
    say(f"Pictures, cascade: escapes {_rate(*tally.escapes())}, overkill {_rate(*tally.overkill())}.\n")
    say("| class | pictures | OK | NG | REVIEW |\n|---|---|---|---|---|")
    for name in classes:
        row = tally.judgements.get(name, {"OK": 0, "NG": 0, "REVIEW": 0})
        say(f"| {name} | {sum(row.values())} | {row['OK']} | {row['NG']} | {row['REVIEW']} |")


def _pixels(measured: Measured, threshold: float, say: Say) -> None:
    gated, alone = overlap(measured, threshold), overlap(measured, 0.0)
    say(
        f"\nPixels: pooled Dice {gated.pooled_dice():.3f} behind the classifier, "
        f"{alone.pooled_dice():.3f} without it.\n"
    )
    say("| class | true px | Dice |\n|---|---|---|")
    for name, true, dice in list(zip(measured.classes, gated.true, gated.dice(), strict=True))[1:]:
        say(f"| {name} | {true} | {dice:.3f} |")


def _sweep(measured: Measured, rules: Rules, say: Say) -> None:
    say("| threshold | min score | min area | escapes | overkill | review |\n|---|---|---|---|---|---|")
    for threshold in (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9):
        planes = stitched(measured, threshold)
        for min_score, min_area in product((0.5, 0.6, 0.7, 0.8, 0.9), (10, 20, 40, 80, 160)):
            tried = replace(rules, threshold=threshold, min_score=min_score, min_area=min_area)
            tally = judgements(measured, planes, tried)
            review = sum(row["REVIEW"] for row in tally.judgements.values())
            counts = f"{tally.escapes()[0]} | {tally.overkill()[0]} | {review}"
            say(f"| {threshold} | {min_score} | {min_area} | {counts} |")
