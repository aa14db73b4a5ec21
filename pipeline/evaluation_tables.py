"""An evaluation as a person reads it in a terminal; computes nothing but sums and units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.evaluation import Evaluation, Tried
from pipeline.gate import GatePoint
from pipeline.operating_point import NEVER, Point
from pipeline.shown import counted, printable

FEW = 5  # problems that are told one by one


def show_evaluation(console: Console, evaluation: Evaluation, tried: Tried) -> None:
    """Everything measured, the figures that decide first."""
    console.print(_head(evaluation))
    console.print(_rates(evaluation), highlight=False)
    console.print(_classes(evaluation))
    if len(evaluation.names.classes) > 2:
        console.print(_confusion(evaluation))
    if evaluation.agreement.known:
        console.print(_pixels(evaluation), highlight=False)
    if evaluation.boxes_known:
        console.print(_boxes(evaluation, tried), highlight=False)
    if gate := evaluation.gate:
        console.print(_gate(gate))
    if tried.curve:
        console.print(_curve(evaluation, tried))
    for remark in remarks(evaluation):
        console.print(Text(f"! {remark}", "yellow"))


def remarks(evaluation: Evaluation) -> list[str]:
    """What a reader must know before believing the figures."""
    said = [printable(remark) for remark in evaluation.remarks]
    if evaluation.problems:
        said.append(f"{counted(len(evaluation.problems), 'picture')} could not be examined and are in no figure:")
        said += [f"  {printable(p.path)}: {printable(p.reason)}" for p in evaluation.problems[:FEW]]
    if len(evaluation.problems) > FEW:
        said.append(f"  … {len(evaluation.problems) - FEW} more stand in --json")
    if not evaluation.escape.total or not evaluation.overkill.total:
        missing = "defective" if not evaluation.escape.total else "good"
        said.append(f"no {missing} picture among them: rules cannot be weighed")
    return said


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _head(evaluation: Evaluation) -> Text:
    recipes = ", ".join(map(printable, evaluation.recipes))
    pictures = counted(len(evaluation.rows), "picture")
    parts = counted(len(set(evaluation.parts)), "part")
    return Text.assemble((recipes, "bold"), f"\n{evaluation.settings.side}: {pictures} of {parts}\n")


def _rates(evaluation: Evaluation) -> Text:
    return Text.assemble(
        ("escape    ", "bold"), f"{evaluation.escape}, defective judged OK\n",
        ("  parts   ", "dim"), f"{evaluation.escape_parts}, with any picture judged OK\n",
        ("overkill  ", "bold"), f"{evaluation.overkill}, good judged NG\n",
        ("  parts   ", "dim"), f"{evaluation.overkill_parts}, with any picture judged NG\n",
        ("REVIEW    ", "bold"), f"{evaluation.review.count} of {evaluation.review.total}, counted as neither\n",
        ("accuracy  ", "bold"), f"{share(evaluation.confusion.accuracy_good_bad)} good or bad, "
        f"{share(evaluation.confusion.accuracy)} by class\n",
    )  # fmt: skip


def _classes(evaluation: Evaluation) -> Table:
    table = _table("classes", "class", "pictures", "OK", "NG", "REVIEW", "class right", "Dice", "IoU", "true px")
    agreement, names = evaluation.agreement, evaluation.names.classes
    by_name = names[: len(evaluation.data_classes)] == evaluation.data_classes
    judged: Counter[tuple[int, str]] = Counter((row.true_class, row.judgement) for row in evaluation.rows)
    for index, name in enumerate(evaluation.data_classes):
        counts = [judged[index, judgement] for judgement in ("OK", "NG", "REVIEW")]
        shown = by_name and index > 0 and agreement.known
        figures = [number(agreement.dice(index)), number(agreement.iou(index)), f"{agreement.true[index]:,}"]
        right = share(evaluation.confusion.recall(index)) if by_name else "–"
        row = [f"{sum(counts):,}", *map(str, counts), right, *(figures if shown else ["–"] * 3)]
        table.add_row(printable(name), *row)
    return table


def _confusion(evaluation: Evaluation) -> Table:
    names = [printable(name) for name in evaluation.names.classes]
    table = _table("\ntrue class, and what was said", "", *names, "REVIEW")
    for index, name in enumerate(names):
        counts = evaluation.confusion.counts[index]
        cells = [
            Text(str(count), "green" if column == index else "red") if count else Text("·", "dim")
            for column, count in enumerate(counts)
        ]
        if counts.any():
            table.add_row(name, *cells)
    return table


def _pixels(evaluation: Evaluation) -> Text:
    a, alone = evaluation.agreement, evaluation.alone
    return Text.assemble(
        ("\nDice      ", "bold"), f"{number(a.defect_dice)} defective or good, {number(a.class_aware_dice)} by class "
        f"(pooled; the segmenter alone {number(alone.defect_dice)}, {number(alone.class_aware_dice)})\n",
        ("mean IoU  ", "bold"), f"{number(a.mean_iou)} of the defect classes that are there "
        f"(the segmenter alone {number(alone.mean_iou)})\n",
        ("per image ", "bold"), f"{number(a.mean_image_dice)} mean Dice over pictures and classes; "
        f"finding nothing scores {number(a.mean_image_dice_of_nothing)}\n",
    )  # fmt: skip


def _boxes(evaluation: Evaluation, tried: Tried) -> Text:
    boxes, ranked, best = evaluation.boxes, evaluation.ranked, tried.boxes
    per_class = ", ".join(
        f"{printable(name)} {number(ranked.ap(index))}" for index, name in list(enumerate(evaluation.names.classes))[1:]
    )
    return Text.assemble(
        ("boxes     ", "bold"), f"precision {number(boxes.precision)}, recall {number(boxes.recall)}, "
        f"F1 {number(boxes.f1)} at IoU {boxes.least_iou:g} over {sum(boxes.true.values()):,} true boxes\n",
        ("mAP       ", "bold"), f"{number(ranked.mean_ap)} ({per_class})\n",
        ("best F1   ", "bold") if best else "",
        f"{number(best.f1)} with min score {best.min_score:g}, min area {best.min_area_px} px\n" if best else "",
    )  # fmt: skip


def _gate(points: Sequence[GatePoint]) -> Table:
    table = _table("\nthe classifier alone as a gate", "threshold", "recall", "95 %", "precision", "sent on")
    for point in points:
        ends = point.recall.interval
        sure = "–" if ends is None else f"{100 * ends[0]:.1f} – {100 * ends[1]:.1f} %"
        table.add_row(
            f"{point.threshold:g}",
            share(point.recall.share),
            sure,
            share(point.precision.share),
            share(point.sent.share),
        )
    return table


def _curve(evaluation: Evaluation, tried: Tried) -> Table:
    best, met = (tried.chosen.rules, tried.chosen.meets_target) if tried.chosen else (None, True)
    target = f"an escape of {evaluation.settings.escape_target:.1%}"
    said = f"at {target} or less: ◀" if met else f"{target} is met by no rules, the nearest: ◀"
    title = f"\nescape against overkill   {said}"
    table = _table(title, "overkill", "escape", "REVIEW", "threshold", "min score", "min area px", "NG above", "")
    for point in tried.curve:
        note = "◀" if point.rules == best else ""
        table.add_row(*_figures(point), note, style="bold" if note else "")
    return table


def _figures(point: Point) -> list[str]:
    rules = point.rules
    rates = [f"{share(rate.share)}" for rate in (point.overkill, point.escape, point.review)]
    above = "never" if rules.ng_above >= NEVER else f"{rules.ng_above:g}"
    return [*rates, f"{rules.threshold:g}", f"{rules.min_score:g}", str(rules.min_area_px), above]


def share(value: float | None) -> str:
    """In per cent with one decimal; a dash where nothing was there to be counted."""
    return "–" if value is None else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    """With three decimals; a dash where nothing was there to be counted."""
    return "–" if value is None else f"{value:.3f}"
