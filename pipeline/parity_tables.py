"""What was compared, as a person reads it: on a terminal, on a model's card; computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.messages import JUDGEMENTS
from pipeline.parity import Compared, Differences, Flip, Parity, by_class, worst_flips
from pipeline.promotion import needs_promotion
from pipeline.shown import counted, printable

COLUMNS = ("engine", "batch", "flips", "to OK", "score ±", "mask px", "in company", "NaN")
Refusals = Mapping[str, Sequence[str]]  # engine → why; none: promoted


def show_parity(console: Console, parity: Parity, refusals: Refusals) -> None:
    """The tables, then what became of every engine."""
    console.print(Text(summary(parity)))
    console.print(_table(parity))
    if len({name for each in parity.compared for name in each.against.pictures}) > 1:
        console.print(_classes(parity))
    for engine in parity.engines[1:]:
        for flip in worst_flips(parity.of(engine)):
            console.print(Text(f"  {engine}: {_flip(flip)}"), style="dim", soft_wrap=True)
    for left_out in parity.left_out[:5]:
        console.print(Text(f"! left out: {printable(left_out)}", "yellow"), soft_wrap=True)
    for engine, why in refusals.items():
        console.print(
            Text(
                f"✗ {verdict(engine, why)}" if why else f"✓ {verdict(engine, why)}", "bold red" if why else "bold green"
            )
        )


def summary(parity: Parity) -> str:
    """How many pictures, and what the reference says of them."""
    judged = ", ".join(f"{parity.judged[name]} {name}" for name in JUDGEMENTS if parity.judged[name])
    return f"{counted(sum(parity.judged.values()), 'picture')}; {parity.reference} alone says: {judged or 'nothing'}"


def rows(parity: Parity) -> Iterator[tuple[str, ...]]:
    """Of COLUMNS, an engine's name once; the reference's own first rows show its batches against itself alone."""
    last = ""
    for each in parity.compared:
        against, company = each.against, each.company
        yield (
            each.engine if each.engine != last else "",
            str(each.batch),
            str(len(against.flips)),
            str(len(against.to_ok)),
            small(against.largest_score),
            share(against.mask_share),
            f"{len(company.flips)} ({small(company.largest_score)})" if each.batch > 1 else "",
            str(max(against.not_finite, company.not_finite)) if not each.faults else "fails",
        )
        last = each.engine


def small(value: float) -> str:
    """A difference of probabilities with two digits that say something; 0 where there is none."""
    return "0" if value == 0 else f"{value:.1e}" if value < 0.001 else f"{value:.3f}"


def share(value: float | None) -> str:
    """Of pixels, in per cent; a dash without a segmenter."""
    if value is None:
        return "–"
    return "0" if value == 0 else f"{100 * value:.2g} %" if value >= 1e-5 else "<0.001 %"


def _table(parity: Parity) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows(parity):
        if row[0] and table.row_count:
            table.add_section()
        flips = Text(row[2], "red" if row[2] != "0" else "")
        table.add_row(printable(row[0]), row[1], flips, *row[3:])
    return table


def _classes(parity: Parity) -> Table:
    """Each engine's worst batch, by class of the data."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    names = ("class", "pictures", *(f"{each} flips" for each in parity.engines[1:]), "score ±", "mask px")
    for number, column in enumerate(names):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    worst = {engine: by_class(worst_of(parity.of(engine))) for engine in parity.engines[1:]}
    for name in parity.compared[0].against.pictures:
        figures = [worst[engine][name] for engine in worst]
        scores = max((each[2] for each in figures if each[2] is not None), default=None)
        masks = max((each[3] for each in figures if each[3] is not None), default=None)
        flips = [str(each[1]) for each in figures]
        pictures = str(figures[0][0]) if figures else ""
        table.add_row(printable(name), pictures, *flips, "–" if scores is None else small(scores), share(masks))
    return table


def worst_of(compared: Sequence[Compared]) -> Differences:
    """Against the reference, of the batch size with most flips, then with the largest difference."""
    return max(compared, key=lambda each: (len(each.against.flips), each.against.largest_score)).against


def _flip(flip: Flip) -> str:
    return f"{printable(flip.image)} ({printable(flip.class_name)}): {flip.was} → {flip.now}"


def verdict(engine: str, why: Sequence[str]) -> str:
    """What became of an engine, in words."""
    name, _, device = engine.partition("@")
    if why:
        return printable(f"{engine} refused: {'; '.join(why)}")
    return f"{engine} promoted" if needs_promotion(name, device) else f"{engine} judges alike (it needs no promotion)"


def as_json(parity: Parity, refusals: Refusals) -> dict[str, object]:
    """{"reference": …, "judged": {…}, "engines": [{…}], "promoted": {engine: true}, "refusals": {engine: […]}}"""
    return {
        "reference": parity.reference,
        "judged": dict(parity.judged),
        "left_out": parity.left_out,
        "engines": [
            {
                "engine": each.engine,
                "batch": each.batch,
                "faults": each.faults,
                "against_reference": _facts(each.against),
                "against_itself_alone": _facts(each.company),
            }
            for each in parity.compared
        ],
        "promoted": {engine: not why for engine, why in refusals.items()},
        "refusals": {engine: list(why) for engine, why in refusals.items()},
    }


def _facts(differences: Differences) -> dict[str, object]:
    names = ("pictures", "flips", "score", "mask_share")
    return {
        "pictures": differences.flipped.total,
        "flips": [vars(flip) for flip in differences.flips],
        "to_ok": len(differences.to_ok),
        "not_finite": differences.not_finite,
        "score": differences.largest_score,
        "mask_share": differences.mask_share,
        "confidence": differences.confidence,
        "classes": {name: dict(zip(names, facts, strict=True)) for name, facts in by_class(differences).items()},
    }


def card_section(parity: Parity, refusals: Refusals, facts: Sequence[str]) -> str:
    """For a model's card: the table, what became of each engine, and how it was taken."""
    lines = ["## Engines compared", "", *facts, f"{summary(parity)}.", "", "| " + " | ".join(COLUMNS) + " |"]
    lines.append("|---" * len(COLUMNS) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in rows(parity)]
    lines += ["", *(f"- {verdict(engine, why)}" for engine, why in refusals.items())]
    return "\n".join(lines) + "\n"


def with_section(card: str, section: str) -> str:
    """The card with this section in place of the one of its heading, or at its end."""
    heading = section.partition("\n")[0]
    before, found, after = card.partition(f"{heading}\n")
    if not found:
        return f"{card.rstrip()}\n\n{section}" if card.strip() else section
    rest = after[after.find("\n## ") + 1 :] if "\n## " in after else ""
    return f"{before}{section}" + (f"\n{rest}" if rest else "")
