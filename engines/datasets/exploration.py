"""A data set looked at once before anything is trained: counted, compared with itself and with a split; draws nothing.

Every picture is read once; what cannot be read is among the problems, and the rest goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from engines.datasets.census import Census, disagreeing, new_census, side_table
from engines.datasets.census import as_json as census_json
from engines.datasets.duplicates import (
    Fingerprint,
    Pair,
    across,
    find_pairs,
    fingerprint,
    look_alike,
    proposed_groups,
    thumbnail_scale,
)
from engines.datasets.gallery import Gallery, Shown, shrunk
from engines.datasets.labelled import (
    Dataset,
    DatasetError,
    Picture,
    Problem,
    UnreadablePictureError,
    read_image,
    read_picture,
)
from engines.datasets.split import Split

PROBED = 32  # pictures that tell the usual size
SHOWN_PAIRS = 5

Progress = Callable[[str, int, int], object]  # what is done, so many, of so many


@dataclass(frozen=True, eq=False)
class Exploration:
    """What was found."""

    dataset: Dataset
    census: Census
    gallery: Gallery
    pairs: tuple[Pair, ...]
    sets: tuple[tuple[str, ...], ...]  # of pictures that show the same
    split: Split | None = None

    @property
    def alike(self) -> bool:
        """True where the parts are alike by design, so that pictures cannot be told to be duplicates."""
        return look_alike(self.sets, len(self.census.pictures))

    def joined(self) -> tuple[tuple[str, ...], ...]:
        """The sets, for a split to keep together. Raises DatasetError where all parts look alike."""
        if self.alike:
            raise DatasetError(
                f"{max(map(len, self.sets))} of {len(self.census.pictures)} pictures look like one part: the parts are "
                "alike by design and duplicates cannot be told by looks; name the parts in the CSV of --groups"
            )
        return self.sets

    def over_groups(self) -> list[tuple[str, ...]]:
        """Sets whose pictures are in several groups: a split by group alone may tear them."""
        group_of = {facts.image: facts.group for facts in self.census.pictures}
        return [paths for paths in self.sets if len({group_of[path] for path in paths}) > 1]

    def over_sides(self) -> list[tuple[str, ...]]:
        """Sets with pictures on several sides of the split; empty without one."""
        return across(self.sets, self.split.side_of()) if self.split else []

    def torn(self) -> list[Pair]:
        """Pairs over two sides of the split, or without one over two groups; the most alike first."""
        group_of = {facts.image: facts.group for facts in self.census.pictures}
        place = self.split.side_of() if self.split else group_of
        torn = [p for p in self.pairs if place[p.first] != place[p.second] and "left-out" not in
                (place[p.first], place[p.second])]  # fmt: skip
        return sorted(torn, key=lambda pair: (-pair.likeness, pair.first))

    def doubted(self) -> list[tuple[str, ...]]:
        """Sets called good and defective; none where all parts look alike anyway."""
        return [] if self.alike else disagreeing(self.census, self.sets)

    def torn_pictures(self) -> list[tuple[Shown, Shown]]:
        """The first torn pairs, to be shown; read again."""
        return [(self._shown(pair.first), self._shown(pair.second)) for pair in self.torn()[:SHOWN_PAIRS]]

    def _shown(self, image: str) -> Shown:
        return Shown(image, shrunk(read_image(self.dataset.folder / image, "picture", colour=True)))


def explore(
    dataset: Dataset, split: Split | None = None, progress: Progress = lambda what, done, total: None
) -> Exploration:
    """Read every picture once. Raises DatasetError when none can be read."""
    census, gallery, prints = new_census(dataset), Gallery(), []
    scale = _scale(dataset)
    for done, sample in enumerate(dataset.samples, 1):
        try:
            picture = read_picture(dataset, sample, colour=True)
            prints.append(_print_of(dataset, picture, scale))
            census.add(picture)
            gallery.add(picture)
        except UnreadablePictureError as error:
            census.problems.append(Problem(sample.image, str(error)))
        progress("reading", done, len(dataset.samples))
    if not census.pictures:
        first = census.problems[0]
        raise DatasetError(f"no picture of {dataset.folder} can be read; first problem: {first.path}: {first.reason}")
    pairs = find_pairs(prints, progress=lambda done, total: progress("comparing", done, total))
    return Exploration(dataset, census, gallery, tuple(pairs), tuple(proposed_groups(pairs)), split)


def as_json(found: Exploration) -> dict[str, Any]:
    """The numbers of the page for a machine."""
    facts = census_json(found.census)
    facts["duplicates"] = {
        "same_bytes": sum(pair.kind == "same bytes" for pair in found.pairs),
        "same_pixels": sum(pair.kind == "same pixels" for pair in found.pairs),
        "near": sum(pair.kind == "near" for pair in found.pairs),
        "sets": len(found.sets),
        "pictures": sum(map(len, found.sets)),
        "parts_look_alike": found.alike,
        "sets_over_groups": [list(paths) for paths in found.over_groups()],
        "sets_called_good_and_defective": [list(paths) for paths in found.doubted()],
    }
    facts["split"] = None
    if found.split:
        facts["split"] = {
            "sides": side_table(found.census, found.split.side_of()),
            "random": found.split.cuts_groups,
            "sets_over_sides": [list(paths) for paths in found.over_sides()],
            "torn_pairs": [asdict(pair) for pair in found.torn()],
        }
    return facts


def _scale(dataset: Dataset) -> float:
    shapes = []
    for sample in dataset.samples[:: max(1, len(dataset.samples) // PROBED)]:
        try:
            pixels = read_image(dataset.folder / sample.image, "picture")
            shapes.append((pixels.shape[0], pixels.shape[1]))
        except UnreadablePictureError:  # it is read again, and told, with all others
            continue
    return thumbnail_scale(shapes or [(256, 256)])


def _print_of(dataset: Dataset, picture: Picture, scale: float) -> Fingerprint:
    content = (dataset.folder / picture.sample.image).read_bytes()
    return fingerprint(picture.sample.image, content, picture.pixels, scale)
