"""A data set on one page: its numbers, figures, duplicates and problems; it measures nothing and draws nothing.

The page needs no network and runs no script: style and figures are inside it, each figure in a light and a dark form.
Every text that came out of the data is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from engines.datasets.exploration import Exploration, as_json
from engines.datasets.figures import Figure, draw_all
from engines.datasets.labelled import DatasetError

PAGE = "index.html"
MOST_ROWS = 200  # of a list; the JSON has them all
STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2933; --soft: #616e7c; --line: #e4e7eb; --raised: #f6f8fa;
  --alarm: #b3263a; --well: #1c7a6c; }
@media (prefers-color-scheme: dark) { :root { --paper: #171c22; --ink: #e6eaee; --soft: #a3adb8; --line: #303943;
  --raised: #1f262e; --alarm: #ff8c9a; --well: #5fd0be; } }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .2rem; }
p { margin: .3rem 0; max-width: 46rem; }
.soft { color: var(--soft); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .75rem;
  margin: 1.4rem 0 .6rem; }
.facts div { background: var(--raised); border-radius: 8px; padding: .7rem .9rem; }
.facts b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: .85rem; }
ul.said { padding-left: 0; list-style: none; margin: 1rem 0; }
ul.said li { border-left: 4px solid var(--line); padding: .25rem .8rem; margin: .4rem 0; }
ul.said li.alarm { border-color: var(--alarm); } ul.said li.well { border-color: var(--well); }
figure { margin: .8rem 0 0; } figure img { max-width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .8rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .87rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th.text, td.text { text-align: left; overflow-wrap: anywhere; }
code { font-size: .9em; }
"""


def write_page(found: Exploration, folder: Path) -> Path:
    """Write the PNG figures (light) and the page into a folder; the page's path.

    Raises DatasetError when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures = list(draw_all(found))
        for figure in figures:
            (folder / f"{figure.name}.png").write_bytes(figure.light)
        (folder / PAGE).write_text(page(found, figures), encoding="utf-8")
    except OSError as error:
        raise DatasetError(f"page cannot be written to {folder}: {error.strerror}; choose another --out") from error
    return folder / PAGE


def page(found: Exploration, figures: Iterable[Figure]) -> str:
    """The whole HTML document."""
    facts = as_json(found)
    name = escape(found.dataset.folder.resolve().name)
    parts = [
        f"<h1>{name}</h1>",
        f'<p class="soft">Read as {escape(facts["form"])}.</p>',
        _facts(facts),
        _said(found, facts),
        *map(_figure, figures),
        "<h2>Classes</h2>",
        _classes(facts),
        *_split(facts),
        *_sets("Sets of pictures that show the same", found),
        *_problems(facts),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: data set</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _facts(facts: dict[str, Any]) -> str:
    tiles = {
        "pictures": facts["pictures"],
        "good": facts["good"],
        "defective": facts["defective"],
        "groups": facts["groups"],
        "defects": facts["defects"],
        "left out": len(facts["problems"]),
    }
    return (
        '<div class="facts">' + "".join(f"<div><b>{n:,}</b><span>{k}</span></div>" for k, n in tiles.items()) + "</div>"
    )


def _said(found: Exploration, facts: dict[str, Any]) -> str:
    """What the numbers mean, a line each: (class of the line, text)."""
    lines = [*_of_recipe(facts), *_of_duplicates(found, facts), *_of_labels(facts)]
    return '<ul class="said">' + "".join(f'<li class="{kind}">{escape(text)}</li>' for kind, text in lines) + "</ul>"


def _of_recipe(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if not (advice := facts["advice"]):
        return [("", "No defect is marked: this data can teach a classifier, but no segmenter.")]
    said = (
        f"For a recipe: picture.scale {advice['scale']:g} keeps the thin defects (a class's thinnest 5 % end at "
        f"{advice['small_px']:.1f} px) at 3 px or as they are; tiles of {advice['tile']} px then hold three quarters "
        "of the defects whole."
    )
    return [("", said)]


def _of_duplicates(found: Exploration, facts: dict[str, Any]) -> list[tuple[str, str]]:
    twins = facts["duplicates"]
    lines = []
    if exact := twins["same_bytes"] + twins["same_pixels"]:
        lines.append(
            ("alarm", f"{_counted(exact, 'picture')} of the set is there twice, byte for byte or pixel for pixel.")
        )
    if found.alike:
        return [*lines, ("", "The parts look alike by design: duplicates cannot be told by looks, and none are listed. "
                             "Name the parts in the CSV of --groups.")]  # fmt: skip
    if found.split:
        count = len(found.over_sides())
        said = f"{_counted(count, 'scene')} on more than one side of the split: what is measured on it flatters."
        lines.append(("alarm", said) if count else ("well", "No scene is on two sides of the split."))
    elif count := len(found.over_groups()):
        lines.append(("alarm", f"{_counted(count, 'scene')} in more than one group; split with --group-duplicates."))
    if count := len(found.doubted()):
        said = "shown in a good and a defective picture: look whether the label is wrong."
        lines.append(("alarm", f"{_counted(count, 'scene')} {said}"))
    return lines


def _of_labels(facts: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    if facts["unmarked"]:
        lines.append(("alarm", f"{_counted(facts['unmarked'], 'picture')} called defective with nothing marked."))
    if facts["specks"]:
        lines.append(("alarm", f"{_counted(facts['specks'], 'mark')} of fewer than 4 px: slips of the pen, perhaps."))
    few = [name for name, row in facts["per_class"].items() if row["pictures"] and row["groups"] < 3]
    if few:
        lines.append(("alarm", f"Fewer than three groups: {', '.join(few)}; a split leaves them all for training."))
    return lines


def _figure(figure: Figure) -> str:
    dark, light = (f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in (figure.dark, figure.light))
    return (
        f'<h2>{escape(figure.title)}</h2><p class="soft">{escape(figure.says)}</p><figure><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}"><img alt="{escape(figure.title)}" src="{light}">'
        "</picture></figure>"
    )


def _classes(facts: dict[str, Any]) -> str:
    head = ("class", "pictures", "groups", "marked", "defects", "area, px (median)", "width, px (5 % – median)",
            "brightness (median)")  # fmt: skip
    rows = []
    for name, row in facts["per_class"].items():
        area, width, light = row["area_px"], row["width_px"], row["brightness"]
        rows.append(
            (
                name,
                row["pictures"],
                row["groups"],
                row["pictures_marked"],
                row["defects"],
                f"{area['p50']:,.0f}" if area else "–",
                f"{width['p5']:.1f} – {width['p50']:.1f}" if width else "–",
                f"{light['p50']:.0f}" if light else "–",
            )
        )
    return _table(head, rows)


def _split(facts: dict[str, Any]) -> list[str]:
    if not facts["split"]:
        return []
    sides = facts["split"]["sides"]
    rows = [(side, *counts.values(), sum(counts.values())) for side, counts in sides.items()]
    said = "Drawn picture by picture: groups are cut." if facts["split"]["random"] else "Pictures of each class."
    return ["<h2>Split</h2>", f'<p class="soft">{said}</p>', _table(("side", *facts["classes"], "all"), rows)]


def _sets(title: str, found: Exploration) -> list[str]:
    """The sets worth a look: over sides, over groups, or called good and defective."""
    reasons: dict[tuple[str, ...], list[str]] = {}
    listed = {
        "over sides of the split": found.over_sides(),
        "over groups": found.over_groups(),
        "good and defective": found.doubted(),
    }
    for reason, sets in listed.items():
        for paths in sets:
            reasons.setdefault(paths, []).append(reason)
    if not reasons or found.alike:
        return []
    # What is listed for most reasons comes first.
    listing = sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = [(", ".join(why), len(paths), _Text(", ".join(paths))) for paths, why in listing]
    return [f"<h2>{title}</h2>", _table(("why it is listed", "pictures", "paths"), rows)]


def _problems(facts: dict[str, Any]) -> list[str]:
    if not facts["problems"]:
        return []
    rows = [(_Text(problem["path"]), _Text(problem["reason"])) for problem in facts["problems"]]
    return ["<h2>Left out</h2>", _table(("item", "reason"), rows)]


class _Text(str):
    """A cell that is read rather than compared: to the left, broken where it must be."""


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    reads = [isinstance(value, _Text) for value in rows[0]] if rows else [False] * len(head)
    top = "".join(
        f'<th class="text">{escape(name)}</th>' if read else f"<th>{escape(name)}</th>"
        for name, read in zip(head, reads, strict=True)
    )
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows[:MOST_ROWS])
    more = f'<p class="soft">… and {len(rows) - MOST_ROWS:,} more.</p>' if len(rows) > MOST_ROWS else ""
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>{more}'


def _cell(value: object) -> str:
    shown = f"{value:,}" if isinstance(value, int) else escape(str(value))
    return f'<td class="text">{shown}</td>' if isinstance(value, _Text) else f"<td>{shown}</td>"


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
