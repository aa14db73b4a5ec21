"""How pictures are shared out to the sides of a split: by part, by time, in folds; it writes and reads no file.

A part is a group, or several groups and pictures that were found to show one thing; it is never cut. Parts are
dealt out class by class. A part that shows several classes counts for the one of them that the fewest parts show,
so that a rare class is not swallowed by a frequent one.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from engines.datasets.connected import first_of_each
from engines.datasets.labelled import Dataset, DatasetError, Sample
from engines.datasets.split import Split

Part = list[Sample]
Sides = dict[str, list[str]]


@dataclass(frozen=True)
class Parts:
    """A data set's pictures by part, what each shows, and which pictures cannot be scored."""

    by_class: dict[int, list[Part]]  # in the order of the parts' names
    contradicted: list[Part]  # called both good and defective: they teach, but never judge
    unknown: list[Part]  # no picture of it has a class: unreadable, or nobody said
    class_of: Mapping[str, int | None]


def make_split(
    dataset: Dataset,
    seed: int,
    held_out_share: float,
    validation_share: float,
    same_tile: Iterable[Iterable[str]] = (),
    class_of: Mapping[str, int] | None = None,
    together: Iterable[Iterable[str]] = (),
) -> Split:
    """Share whole parts out, per class, by a seeded shuffle. Shares are of parts, 0 … 1 and below 1 together.

    `same_tile`: sets of groups that show one part; where they are called both good and defective they cannot be
    scored, so they are never held out, and their good pictures are left out. `together`: sets of picture paths
    that stay on one side. `class_of`: class by path for pictures whose labels decide. A class with at least three
    parts gets one on every side with a share.
    """
    _check_shares(held_out_share, validation_share)
    parts = find_parts(dataset, same_tile, class_of, together)
    sides = _never_judging(parts)
    for class_index in sorted(parts.by_class):
        shuffled = _shuffled(parts.by_class[class_index], f"{seed} {class_index}")
        held, chosen = _counts(len(shuffled), held_out_share, validation_share)
        _put(sides["held_out"], shuffled[:held])
        _put(sides["validation"], shuffled[held : held + chosen])
        _put(sides["training"], shuffled[held + chosen :])
    return _split(sides)


def split_by_time(
    dataset: Dataset, held_out_share: float, validation_share: float, together: Iterable[Iterable[str]] = ()
) -> Split:
    """The last pictures are held out, the ones before choose: what a line will meet is always later than what taught.

    Shares are of pictures. A part that straddles a cut goes wholly to the earlier side. Raises DatasetError when a
    picture has no time, or the parts leave a side empty.
    """
    _check_shares(held_out_share, validation_share)
    if missing := [sample.image for sample in dataset.samples if not sample.time]:
        raise DatasetError(
            f"{len(missing)} of {len(dataset.samples)} pictures have no time (first: {missing[0]}); "
            "give a column time in the CSV of --groups, or split --by group"
        )
    times = sorted(sample.time for sample in dataset.samples)
    held_from = _time_at(times, 1 - held_out_share)
    chosen_from = _time_at(times, 1 - held_out_share - validation_share)
    sides = _empty()
    for part in _joined(dataset, (), together):
        first = min(sample.time for sample in part)
        side = "held_out" if _from(first, held_from) else "validation" if _from(first, chosen_from) else "training"
        _put(sides[side], [part])
    wanted = {"training": True, "validation": validation_share > 0, "held_out": held_out_share > 0}
    if empty := [name for name, needed in wanted.items() if needed and not sides[name]]:
        name = empty[0].replace("_", "-")
        raise DatasetError(f"parts were taken over so long a time that nothing is left for {name}; split --by group")
    return _split(sides)


def split_at_random(
    dataset: Dataset,
    seed: int,
    held_out_share: float,
    validation_share: float,
    class_of: Mapping[str, int] | None = None,
) -> Split:
    """Picture by picture, per class, parts cut: what is measured on it flatters; only to show by how much."""
    single = tuple(Sample(sample.image, "", sample.image, sample.class_index) for sample in dataset.samples)
    loose = Dataset(dataset.folder, dataset.form, dataset.classes, single, dataset.truth_of)
    split = make_split(loose, seed, held_out_share, validation_share, (), class_of)
    return Split(split.training, split.validation, split.held_out, cuts_groups=True)


def make_folds(
    dataset: Dataset,
    seed: int,
    folds: int,
    validation_share: float,
    same_tile: Iterable[Iterable[str]] = (),
    class_of: Mapping[str, int] | None = None,
    together: Iterable[Iterable[str]] = (),
) -> list[Split]:
    """Cross-validation: every part that can be scored is held out in exactly one of the folds, class by class.

    Validation is drawn from the rest of each fold, as a share of its parts. Raises DatasetError when there are
    more folds than parts of any class.
    """
    _check_shares(0, validation_share)
    parts = find_parts(dataset, same_tile, class_of, together)
    largest = max(map(len, parts.by_class.values()), default=0)
    if not 2 <= folds <= largest:
        raise DatasetError(f"{folds} folds cannot be made: give 2 to {largest}, the parts of the most frequent class")
    dealt = _dealt(parts, seed, folds)
    return [_fold(parts, dealt, number, validation_share, seed) for number in range(folds)]


def _dealt(parts: Parts, seed: int, folds: int) -> dict[int, list[list[Part]]]:
    """Per class the parts of each fold; numbers of parts differ by one at most, and pictures by as little as can be."""
    pictures = [0] * folds
    dealt: dict[int, list[list[Part]]] = {}
    for class_index in sorted(parts.by_class):
        dealt[class_index] = [[] for _ in range(folds)]
        for part in _shuffled(parts.by_class[class_index], f"{seed} {class_index}"):
            number = min(range(folds), key=lambda n: (len(dealt[class_index][n]), pictures[n], n))
            dealt[class_index][number].append(part)
            pictures[number] += len(part)
    return dealt


def _fold(parts: Parts, dealt: dict[int, list[list[Part]]], number: int, validation_share: float, seed: int) -> Split:
    sides = _never_judging(parts)
    for class_index, by_fold in dealt.items():
        _put(sides["held_out"], by_fold[number])
        rest = list(chain.from_iterable(by_fold[:number] + by_fold[number + 1 :]))
        shuffled = _shuffled(rest, f"{seed} {class_index} fold {number}")
        _, chosen = _counts(len(shuffled), 0, validation_share)
        _put(sides["validation"], shuffled[:chosen])
        _put(sides["training"], shuffled[chosen:])
    return _split(sides)


def find_parts(
    dataset: Dataset,
    same_tile: Iterable[Iterable[str]] = (),
    class_of: Mapping[str, int] | None = None,
    together: Iterable[Iterable[str]] = (),
) -> Parts:
    """The parts by the class they count for. Raises DatasetError when no picture's class is known."""
    classes = {sample.image: sample.class_index for sample in dataset.samples} | dict(class_of or {})
    if all(index is None for index in classes.values()):
        raise DatasetError("no picture's class is known; read the truth first and give its classes")
    same_tile = [list(groups) for groups in same_tile]
    doubted = set(chain.from_iterable(same_tile))
    joined = _joined(dataset, same_tile, together)
    seen = [{index for sample in part if (index := classes[sample.image]) is not None} for part in joined]
    showing = Counter(chain.from_iterable(seen))
    found = Parts(defaultdict(list), [], [], classes)
    for part, indexes in zip(joined, seen, strict=True):
        if not indexes:
            found.unknown.append(part)
        elif 0 in indexes and len(indexes) > 1 and any(sample.group in doubted for sample in part):
            found.contradicted.append(part)
        else:
            found.by_class[min(indexes - {0} or {0}, key=lambda index: (showing[index], index))].append(part)
    return found


def _joined(dataset: Dataset, same_tile: Iterable[Iterable[str]], together: Iterable[Iterable[str]]) -> list[Part]:
    """Samples of one part together, in the order of their first group's name."""
    group_of = {sample.image: sample.group for sample in dataset.samples}
    known = set(group_of.values())
    sets = [{group} for group in known]
    sets += [_known(names, known, "group", "same-tile.txt") for names in same_tile]
    sets += [{group_of[path] for path in _known(paths, set(group_of), "picture", "a set")} for paths in together]
    first = first_of_each(sets)
    parts: dict[str, Part] = defaultdict(list)
    for sample in dataset.samples:
        parts[first[sample.group]].append(sample)
    return [parts[name] for name in sorted(parts)]


def _known(names: Iterable[str], known: set[str], what: str, where: str) -> set[str]:
    wanted = set(names)
    if unknown := wanted - known:
        raise DatasetError(f"{where} names the {what} {min(unknown)!r}, which the data set does not have")
    return wanted


def _never_judging(parts: Parts) -> Sides:
    """Sides that hold only what may not be scored: contradicted parts teach, their good pictures are left out."""
    sides = _empty()
    for sample in chain.from_iterable(parts.contradicted):
        sides["training" if parts.class_of[sample.image] else "left_out"].append(sample.image)
    _put(sides["training"], parts.unknown)
    return sides


def _counts(parts: int, held_out_share: float, validation_share: float) -> tuple[int, int]:
    """How many parts are held out and how many choose; at least one teaches."""
    if parts < 3:
        return 0, 0
    held = max(1, round(parts * held_out_share)) if held_out_share else 0
    chosen = max(1, round(parts * validation_share)) if validation_share else 0
    held = min(held, parts - 1 - bool(chosen))
    return held, min(chosen, parts - 1 - held)


def _check_shares(held_out_share: float, validation_share: float) -> None:
    if min(held_out_share, validation_share) < 0 or held_out_share + validation_share >= 1:
        raise DatasetError(
            f"held out {held_out_share:g} and validation {validation_share:g} leave nothing to teach; "
            "give two shares that are below 1 together"
        )


def _time_at(times: list[str], share: float) -> str | None:
    """The time of the picture that begins what comes after this share; None when nothing does."""
    at = round(len(times) * share)
    return times[at] if at < len(times) else None


def _from(time: str, start: str | None) -> bool:
    return start is not None and time >= start


def _shuffled(parts: list[Part], key: str) -> list[Part]:
    shuffled = list(parts)
    random.Random(key).shuffle(shuffled)
    return shuffled


def _empty() -> Sides:
    return {"training": [], "validation": [], "held_out": [], "left_out": []}


def _put(side: list[str], parts: Iterable[Part]) -> None:
    side += [sample.image for part in parts for sample in part]


def _split(sides: Sides) -> Split:
    names = ("training", "validation", "held_out", "left_out")
    training, validation, held_out, left_out = (tuple(sorted(sides[name])) for name in names)
    return Split(training, validation, held_out, left_out)
