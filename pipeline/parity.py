"""Does another engine judge as the reference does? Counts what differs, and decides whether that is too much; pure.

What counts is the judgement of the whole recipe, thresholds and rules included: two probabilities on both sides of a
threshold are a difference, however close, and two far apart on one side of it are none. Scores and masks are compared
too, to show how near the next flip is. `alone` is the engine itself with batches of one: a picture's verdict must not
depend on who shares its batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.messages import Judgement
from pipeline.operating_point import Rate

Gray8 = npt.NDArray[np.uint8]
SHOWN = 20  # flips that are told one by one
FEWEST = 20  # pictures on which anything is promoted


@dataclass(frozen=True, eq=False)
class Said:
    """What one engine says of one picture."""

    judgement: Judgement
    reason: str
    scores: npt.NDArray[np.float32] | None = None  # [T, K] of the classifier, per tile
    labels: Gray8 | None = None  # [H, W] of the segmenter, behind no gate
    confidence: Gray8 | None = None  # [H, W]
    finite: bool = True


@dataclass(frozen=True)
class Flip:
    """A picture that is judged otherwise."""

    image: str
    class_name: str
    was: str
    now: str


@dataclass
class Differences:
    """Of two engines, or of one in two ways, over many pictures."""

    pictures: Counter[str] = field(default_factory=Counter)  # by class of the data
    flips: list[Flip] = field(default_factory=list)  # of the judgement, or of the class that NG names
    not_finite: int = 0  # pictures with a score that is no number
    score: dict[str, float] = field(default_factory=dict)  # by class: largest difference of a probability
    pixels: Counter[str] = field(default_factory=Counter)  # by class: pixels whose label differs …
    of_pixels: Counter[str] = field(default_factory=Counter)  # … of so many
    confidence: int = 0  # largest difference, 0…255, where the labels agree

    def add(self, image: str, class_name: str, was: Said, now: Said) -> None:
        """Compare one picture."""
        self.pictures[class_name] += 1
        self.not_finite += not now.finite
        if (was.judgement, was.reason) != (now.judgement, now.reason):
            said = (" ".join(filter(None, (each.judgement, each.reason))) for each in (was, now))
            self.flips.append(Flip(image, class_name, *said))
        if was.scores is not None and now.scores is not None and was.finite and now.finite:
            farthest = float(np.abs(was.scores - now.scores).max(initial=0.0))
            self.score[class_name] = max(self.score.get(class_name, 0.0), farthest)
        if was.labels is not None and now.labels is not None:
            self._add_masks(class_name, was, now)

    def _add_masks(self, class_name: str, was: Said, now: Said) -> None:
        assert was.labels is not None
        same = was.labels == now.labels
        self.pixels[class_name] += int(same.size - same.sum())
        self.of_pixels[class_name] += same.size
        if was.confidence is not None and now.confidence is not None:
            apart = np.abs(was.confidence.astype(np.int16) - now.confidence)
            self.confidence = max(self.confidence, int(apart[same].max(initial=0)))

    @property
    def flipped(self) -> Rate:
        """Pictures judged otherwise, of all."""
        return Rate(len(self.flips), sum(self.pictures.values()))

    @property
    def to_ok(self) -> list[Flip]:
        """Those that are let through now: every one may be an escape."""
        return [flip for flip in self.flips if flip.now == "OK"]

    @property
    def largest_score(self) -> float:
        """Difference of a probability."""
        return max(self.score.values(), default=0.0)

    @property
    def mask_share(self) -> float | None:
        """Share of pixels whose label differs; None without a segmenter."""
        total = sum(self.of_pixels.values())
        return sum(self.pixels.values()) / total if total else None


@dataclass
class Compared:
    """One engine at one batch size."""

    engine: str
    batch: int
    against: Differences = field(default_factory=Differences)  # the reference alone
    company: Differences = field(default_factory=Differences)  # itself alone
    faults: list[str] = field(default_factory=list)  # batches that failed


@dataclass(frozen=True)
class Allowed:
    """How much may differ. A judgement that depends on the batch, or a score that is no number, never may."""

    flips: float = 0.0  # share of pictures
    to_ok: int = 0  # pictures, among those
    score: float = 0.5  # difference of a probability: beyond it a picture only happens to be judged alike


@dataclass
class Parity:
    """What was compared, and what it says."""

    reference: str
    judged: Counter[str] = field(default_factory=Counter)  # by the reference
    compared: list[Compared] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # pictures that could not be read

    def of(self, engine: str) -> list[Compared]:
        """Every batch size of one engine."""
        return [each for each in self.compared if each.engine == engine]

    @property
    def engines(self) -> list[str]:
        """In the order they were given, the reference first."""
        return list(dict.fromkeys(each.engine for each in self.compared))

    def refusals(self, engine: str, allowed: Allowed) -> list[str]:
        """Why this engine must not be promoted; none: it may be."""
        return [
            *self._too_little(),
            *dict.fromkeys(why for each in self.of(engine) for why in _refusals(each, allowed)),
        ]

    def _too_little(self) -> Iterator[str]:
        """A gate that has not seen both kinds has seen nothing flip that matters."""
        if (total := sum(self.judged.values())) < FEWEST:
            yield f"only {total} pictures: give {FEWEST} or more"
        if not self.judged["OK"]:
            yield "no picture that the reference judges OK: give good ones too"
        if not self.judged["NG"] + self.judged["REVIEW"]:
            yield "no picture that the reference holds back: give defective ones too"


def _refusals(each: Compared, allowed: Allowed) -> Iterator[str]:
    at = f"at batch {each.batch}"
    if each.faults:
        yield f"it fails {at}: {each.faults[0]}"
    if each.against.not_finite or each.company.not_finite:
        yield f"{max(each.against.not_finite, each.company.not_finite)} pictures with scores that are no number {at}"
    if each.company.flips:
        yield f"{len(each.company.flips)} judged otherwise in company than alone {at}"
    flipped = each.against.flipped
    if flipped.share is not None and flipped.share > allowed.flips:
        yield f"{flipped.count} of {flipped.total} judged otherwise {at}"
    if each.against.largest_score > allowed.score:
        yield f"a probability differs by {each.against.largest_score:.2f} {at}"
    if len(each.against.to_ok) > allowed.to_ok:
        yield f"{len(each.against.to_ok)} let through that the reference holds back {at}"


def by_class(differences: Differences) -> Mapping[str, tuple[int, int, float | None, float | None]]:
    """Class → (pictures, flips, largest difference of a probability, share of pixels that differ)."""
    flips = Counter(flip.class_name for flip in differences.flips)
    return {
        name: (count, flips[name], differences.score.get(name), _share(differences, name))
        for name, count in differences.pictures.items()
    }


def _share(differences: Differences, name: str) -> float | None:
    total = differences.of_pixels[name]
    return differences.pixels[name] / total if total else None


def worst_flips(compared: Sequence[Compared]) -> list[Flip]:
    """The first ones, each picture once: those let through first."""
    found = {(flip.image, flip.now): flip for each in compared for flip in each.against.flips}
    return sorted(found.values(), key=lambda flip: (flip.now != "OK", flip.image))[:SHOWN]
