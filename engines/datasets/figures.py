"""How a data set looks in figures, light and dark; the only module here that imports matplotlib, loaded when asked for.

Every figure is drawn twice, so that a page can show the one that suits its reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # a file, on machines without a display too

import cv2
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from engines.datasets.census import KEPT_PX, Census, Defect, advise
from engines.datasets.exploration import Exploration
from engines.datasets.gallery import PER_CLASS, Shown, bright, colour

DPI = 130
WIDTH = 8.2  # inches
MARGIN, GAP, CAPTION = 0.1, 0.06, 0.36  # inches, of a row of samples
ROW_WIDTH = WIDTH - 2 * MARGIN - (PER_CLASS - 1) * GAP
MANY = 10  # defects in a picture that share one bar
MOST_CLASSES = 12  # shown of each kind; a hundred rows say nothing


@dataclass(frozen=True)
class Theme:
    """Colours of everything that is no data."""

    paper: str
    ink: str
    soft: str
    grid: str
    heat: tuple[str, ...]  # from nothing to most


LIGHT = Theme("#ffffff", "#1f2933", "#616e7c", "#e4e7eb", ("#f4f6f8", "#f3c9a5", "#d1495b", "#5c1a33"))
DARK = Theme("#171c22", "#e6eaee", "#a3adb8", "#303943", ("#212932", "#6d2b45", "#d1495b", "#ffd9a8"))


@dataclass(frozen=True)
class Figure:
    """A drawn figure."""

    name: str  # of the file, without suffix
    title: str
    says: str  # what to read from it
    light: bytes  # PNG
    dark: bytes


def draw_all(found: Exploration) -> Iterator[Figure]:
    """Every figure for which there is something to draw, in the order of the page."""
    census = found.census
    defects = [defect for facts in census.pictures for defect in facts.defects]
    torn = found.torn_pictures()
    plans: list[tuple[bool, str, str, str, Callable[[Theme], Any]]] = [
        (True, "classes", "Pictures of each class", "What a class with few groups says of a network is little: its "
         "pictures show the same few parts.", lambda theme: _classes(census, theme)),
        (True, "samples", "Samples", "Defects as the data marks them. A line that does not follow the defect is a "
         "wrong label, or a wrong --form.", lambda theme: _samples(found, theme)),
        (bool(defects), "defects-per-picture", "Defects in a picture", "Connected regions of one class; the good "
         "pictures are left out.", lambda theme: _per_picture(census, theme)),
        (bool(defects), "areas", "Area of a defect", "Each dot is a defect, the bar the middle half, the white mark "
         "the median.", lambda theme: _areas(census, theme)),
        (bool(defects), "widths", "How thin defects are", f"Share of defects that are at least so wide. What is "
         f"thinner than {KEPT_PX:g} px after scaling is hard to find.", lambda theme: _widths(census, theme)),
        (bool(defects), "positions", "Where defects lie", "Over all pictures of a class, as if all had one size. A "
         "network may learn a place instead of a defect.", lambda theme: _positions(census, theme)),
        (True, "brightness", "Brightness of the pictures", "Classes that were lit differently can be told apart by "
         "light alone, which will not hold on the line.", lambda theme: _brightness(census, theme)),
        (True, "sizes", "Size of the pictures", "The area of a dot grows with the number of pictures.",
         lambda theme: _sizes(census, theme)),
        (bool(torn) and not found.alike, "torn-pairs",
         f"The same scene {'on two sides' if found.split else 'in two groups'}",
         "The pairs most alike. " + ("What is measured on one side was seen on the other." if found.split else
         "A split by group may put them on two sides."), lambda theme: _torn(torn, found, theme)),
    ]  # fmt: skip
    for wanted, name, title, says, draw in plans:
        if wanted:
            yield Figure(name, title, says, _png(draw, LIGHT), _png(draw, DARK))


def _png(draw: Callable[[Theme], Any], theme: Theme) -> bytes:
    style: dict[Any, Any] = {
        "font.size": 10,
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.soft,
        "axes.labelcolor": theme.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": theme.ink,
        "xtick.color": theme.soft,
        "ytick.color": theme.soft,
        "grid.color": theme.grid,
        "legend.frameon": False,
    }
    with plt.rc_context(style):
        figure = draw(theme)
        try:
            figure.savefig(into := BytesIO(), dpi=DPI, format="png")
        finally:
            plt.close(figure)
    return into.getvalue()


def _classes(census: Census, theme: Theme) -> Any:
    counts = Counter(facts.class_index for facts in census.pictures)
    groups = Counter(index for index, _ in {(facts.class_index, facts.group) for facts in census.pictures})
    shown = [index for index in range(len(census.classes)) if index == 0 or counts[index]][:MOST_CLASSES]
    figure, ax = _rows(len(shown))
    ax.barh(range(len(shown)), [counts[i] for i in shown], color=[_ink(i) for i in shown], height=0.62)
    for row, index in enumerate(shown):
        said = f"  {counts[index]:,} in {groups[index]:,} group{'' if groups[index] == 1 else 's'}"
        ax.text(counts[index], row, said, va="center", fontsize=9, color=theme.soft)
    ax.set_xlim(0, max(counts.values()) * 1.22)
    _furnish_rows(ax, [census.classes[index] for index in shown], "pictures")
    return _tight(figure)


def _samples(found: Exploration, theme: Theme) -> Any:
    """A row for each class; its pictures share one height, as high as the row's width allows."""
    classes = [index for index in sorted(found.gallery.by_class) if found.gallery.by_class[index]][:MOST_CLASSES]
    rows = [found.gallery.by_class[index] for index in classes]
    heights = [min(1.7, ROW_WIDTH / sum(_aspect(shown) for shown in row)) for row in rows]
    total = sum(heights) + CAPTION * len(rows)
    figure = plt.figure(figsize=(WIDTH, total))
    top = total
    for index, row, height in zip(classes, rows, heights, strict=True):
        name = _cut(found.census.classes[index], 60)
        figure.text(MARGIN / WIDTH, (top - 0.26) / total, name, color=_ink(index), fontsize=10.5, fontweight="bold")
        top -= CAPTION + height
        left = MARGIN
        for shown in row:
            width = height * _aspect(shown)
            _show(figure.add_axes((left / WIDTH, top / total, width / WIDTH, height / total)), shown)
            left += width + GAP
    return figure


def _aspect(shown: Shown) -> float:
    return float(shown.pixels.shape[1] / shown.pixels.shape[0])


def _per_picture(census: Census, theme: Theme) -> Any:
    counts = Counter(min(len(facts.defects), MANY) for facts in census.pictures if facts.class_index > 0)
    last = max(counts, default=1)
    figure, ax = plt.subplots(figsize=(WIDTH, 3.0))
    xs = list(range(last + 1))
    ax.bar(xs, [counts[x] for x in xs], color=_ink(1), width=0.66)
    for x in xs:
        if counts[x]:
            ax.text(x, counts[x], f"{counts[x]:,}", ha="center", va="bottom", fontsize=9, color=theme.soft)
    ax.set_xticks(xs, [f"{x} or more" if x == MANY else "none marked" if x == 0 else str(x) for x in xs])
    ax.set_xlim(-0.6, max(last, 4) + 0.6)
    ax.set_ylim(0, max(counts.values(), default=1) * 1.14)
    _furnish(ax, "defects in the picture", "defective pictures")
    ax.grid(False, axis="x")
    return _tight(figure)


def _areas(census: Census, theme: Theme) -> Any:
    by_class = _by_class(census)
    figure, ax = _rows(len(by_class))
    for row, (index, defects) in enumerate(by_class):
        _dots(ax, row, [defect.area for defect in defects], index)
    ax.set_xscale("log")
    _plain_log(ax.xaxis)
    _furnish_rows(ax, [f"{census.classes[index]} ({len(defects):,})" for index, defects in by_class], "area, px")
    return _tight(figure)


def _widths(census: Census, theme: Theme) -> Any:
    advice = advise(census)
    figure, ax = plt.subplots(figsize=(WIDTH, 3.6))
    for index, defects in _by_class(census):
        widths = np.sort([defect.width for defect in defects])
        shares = 100 * (1 - np.arange(len(widths)) / len(widths))
        ax.step(np.append(widths, widths[-1]), np.append(shares, 0), where="pre", color=_ink(index), linewidth=1.9,
                label=census.classes[index])  # fmt: skip
    if advice:
        limit = KEPT_PX / advice.scale
        ax.axvline(limit, color=theme.soft, linestyle=(0, (4, 3)), linewidth=1.2)
        said = f" {KEPT_PX:g} px" + (f" at scale {advice.scale:g}" if advice.scale < 1 else "")
        ax.text(limit, 104, said, fontsize=8.5, color=theme.soft, va="bottom", ha="center")
    ax.set_xscale("log")
    _plain_log(ax.xaxis)
    ax.set_ylim(0, 103)
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g} %"))
    _furnish(ax, "width at the thickest place, px", "defects at least so wide")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return _tight(figure)


def _positions(census: Census, theme: Theme) -> Any:
    shown = [index for index, _ in _by_class(census)][:MOST_CLASSES]
    columns = 3 if len(shown) in (1, 2, 3, 5, 6) else 4
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, 0.2 + 2.25 * rows), squeeze=False)
    heat = LinearSegmentedColormap.from_list("heat", theme.heat)
    for ax, index in zip(axes.flat, shown, strict=False):
        cells = cv2.GaussianBlur(census.position_map(index), (0, 0), 0.8)
        ax.imshow(cells, cmap=heat, vmin=0, vmax=max(float(cells.max()), 1e-9), interpolation="bilinear")
        count = sum(any(d.class_index == index for d in facts.defects) for facts in census.pictures)
        ax.set_title(f"{_cut(census.classes[index], 22)}, {count:,}", loc="left", fontsize=9.5, color=theme.ink)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    return _tight(figure)


def _brightness(census: Census, theme: Theme) -> Any:
    shown = [index for index in range(len(census.classes)) if any(f.class_index == index for f in census.pictures)]
    shown = shown[:MOST_CLASSES]
    figure, ax = _rows(len(shown))
    for row, index in enumerate(shown):
        _dots(ax, row, [facts.brightness for facts in census.pictures if facts.class_index == index], index)
    ax.set_xlim(0, 255)
    ax.set_xticks(range(0, 256, 32))
    _furnish_rows(ax, [census.classes[index] for index in shown], "mean grey value of a picture")
    return _tight(figure)


def _sizes(census: Census, theme: Theme) -> Any:
    sizes = Counter((facts.width, facts.height) for facts in census.pictures)
    figure, ax = plt.subplots(figsize=(WIDTH, 3.8))
    across, down = zip(*sizes, strict=True)
    counts = np.array(list(sizes.values()), float)
    ax.scatter(across, down, s=16 + 240 * counts / max(counts.sum(), 1), color=_ink(2), alpha=0.55, linewidths=0)
    if len(sizes) <= 3:
        for (x, y), count in sizes.items():
            ax.annotate(f"{x}×{y}: {count:,}", (x, y), xytext=(12, 6), textcoords="offset points", fontsize=9,
                        color=theme.soft)  # fmt: skip
    ax.set_xlim(0, max(across) * 1.18)
    ax.set_ylim(0, max(down) * 1.18)
    limit = min(ax.get_xlim()[1], ax.get_ylim()[1])
    ax.plot([0, limit], [0, limit], color=theme.grid, linewidth=1.2, zorder=0)
    ax.text(limit, limit, "square ", ha="right", va="top", fontsize=8.5, color=theme.soft)
    _furnish(ax, "width, px", "height, px")
    return _tight(figure)


def _torn(torn: Sequence[tuple[Shown, Shown]], found: Exploration, theme: Theme) -> Any:
    group_of = {facts.image: facts.group for facts in found.census.pictures}
    place = found.split.side_of() if found.split else group_of
    heights = [WIDTH / max(len(torn), 3) / min(_aspect(pair[side]) for pair in torn) for side in (0, 1)]
    figure, axes = plt.subplots(
        2, max(len(torn), 3), figsize=(WIDTH, min(sum(heights), 5) + 0.5), squeeze=False, height_ratios=heights
    )
    for ax in axes[:, len(torn) :].flat:
        ax.set_visible(False)
    for column, pair in enumerate(torn):
        for ax, shown in zip(axes[:, column], pair, strict=True):
            _show(ax, shown)
            ax.set_anchor("NW")
            ax.set_title(_cut(place[shown.image], 20), fontsize=8.5, color=theme.soft, loc="left", pad=3)
    return _tight(figure)


def _rows(count: int) -> tuple[Any, Any]:
    return plt.subplots(figsize=(WIDTH, 0.95 + 0.42 * max(count, 1)))


def _dots(ax: Any, row: int, values: Sequence[float], class_index: int) -> None:
    """Every value as a dot, the middle half as a bar, the median as a mark."""
    ink = _ink(class_index)
    low, middle, high = np.percentile(values, (25, 50, 75))
    ups = row + np.random.default_rng(0).uniform(-0.27, 0.27, len(values))
    faint = float(np.clip(40 / len(values), 0.1, 0.45))
    ax.plot(values, ups, "o", color=ink, markersize=3.4, alpha=faint, markeredgewidth=0)
    ax.plot([low, high], [row, row], color=ink, linewidth=7, solid_capstyle="butt", zorder=3)
    ax.plot([middle], [row], "|", color="white", markersize=7, markeredgewidth=2.2, zorder=4)


def _furnish_rows(ax: Any, names: Sequence[str], across: str) -> None:
    ax.set_yticks(range(len(names)), [_cut(name, 28) for name in names])
    ax.tick_params(axis="y", length=0, labelcolor=mpl.rcParams["text.color"])
    ax.spines["left"].set_visible(False)
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.set_xlabel(across)
    ax.grid(True, axis="x", linewidth=0.8)
    ax.set_axisbelow(True)


def _furnish(ax: Any, across: str, up: str) -> None:
    ax.set_xlabel(across)
    ax.set_ylabel(up)
    if ax.get_yscale() == "linear" and up.endswith("pictures"):
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.grid(True, linewidth=0.8)
    ax.set_axisbelow(True)


def _plain_log(axis: Any) -> None:
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _show(ax: Any, shown: Shown) -> None:
    ax.imshow(cv2.cvtColor(shown.pixels, cv2.COLOR_BGR2RGB))
    for outline in shown.outlines:
        ax.plot(*outline.points.T, color=_hex(bright(outline.class_index)), linewidth=1.1)
    height, width = shown.pixels.shape[:2]
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    ax.axis("off")


def _by_class(census: Census) -> list[tuple[int, list[Defect]]]:
    """Defects by class, of each class that has one."""
    found = []
    for index in range(1, len(census.classes)):
        if defects := [d for facts in census.pictures for d in facts.defects if d.class_index == index]:
            found.append((index, defects))
    return found[:MOST_CLASSES]


def _ink(class_index: int) -> str:
    return _hex(colour(class_index))


def _hex(bgr: tuple[int, int, int]) -> str:
    blue, green, red = bgr
    return f"#{red:02x}{green:02x}{blue:02x}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _tight(figure: Any) -> Any:
    figure.tight_layout()
    return figure
