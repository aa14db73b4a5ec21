"""Sharing pictures out: by part, by time, in folds, at random; what is written is what is read."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from dataset_files import shared
from hypothesis import given, settings
from hypothesis import strategies as st
from training_pictures import MODELS

from engines.datasets.labelled import Dataset, DatasetError, Sample, Shape, Truth
from engines.datasets.sharing import make_folds, make_split, split_at_random, split_by_time
from engines.datasets.split import RANDOM_REMARK, Split, read_same_tile, read_split, write_split

CLASSES = ("good", "dent", "scratch")


def nothing_marked(sample: Sample, shape: Shape) -> Truth:
    return Truth(sample.class_index or 0, np.zeros(shape, np.uint8))


def dataset(samples: list[Sample]) -> Dataset:
    return Dataset(Path("tiles"), "class-folders", CLASSES, tuple(samples), nothing_marked)


def part(name: str, *classes: int | None, time: str = "") -> list[Sample]:
    """Pictures of one part: one for each class it is called."""
    return [Sample(f"{name}/{number}.png", "", name, index, time=time) for number, index in enumerate(classes)]


def many_parts(counts: tuple[int, ...], pictures: int = 3) -> Dataset:
    """So many parts of each class, each with so many pictures."""
    return dataset([
        sample
        for index, count in enumerate(counts)
        for number in range(count)
        for sample in part(f"{CLASSES[index]}-{number:03}", *[index] * pictures)
    ])  # fmt: skip


def parts_on(found: Split) -> dict[str, set[str]]:
    """Parts by side, from the paths."""
    return {name: {path.split("/")[0] for path in paths} for name, paths in found.sides().items()}


parts_of_random_sizes = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 5)), min_size=1, max_size=40
).map(lambda drawn: dataset([
    sample for number, (index, count) in enumerate(drawn) for sample in part(f"part-{number:02}", *[index] * count)
]))  # fmt: skip


@settings(deadline=None)  # other work on the machine is no failure
@given(parts_of_random_sizes, st.integers(0, 99), st.floats(0, 0.6), st.floats(0, 0.35))
def test_no_part_is_cut_and_shares_are_kept(data: Dataset, seed: int, held_out: float, validation: float) -> None:
    """Every picture is on one side, no part on two; each class keeps its shares to within one part."""
    found = make_split(data, seed, held_out, validation)
    paths = [path for side in found.sides().values() for path in side]
    assert sorted(paths) == sorted(sample.image for sample in data.samples)
    sides = parts_on(found)
    assert sum(map(len, sides.values())) == len({sample.group for sample in data.samples})
    for index in range(3):
        groups = {sample.group for sample in data.samples if sample.class_index == index}
        held, chosen, taught = (len(groups & sides[name]) for name in ("held-out", "validation", "training"))
        if len(groups) < 3:
            assert (held, chosen) == (0, 0)
        else:
            assert abs(held - held_out * len(groups)) <= 1
            assert abs(chosen - validation * len(groups)) <= 1
            assert taught >= 1
            assert bool(held) == (held_out > 0)
            assert bool(chosen) == (validation > 0)


@settings(deadline=None)  # other work on the machine is no failure
@given(parts_of_random_sizes, st.integers(0, 99), st.integers(2, 5))
def test_each_part_is_held_out_in_exactly_one_fold(data: Dataset, seed: int, folds: int) -> None:
    """Folds hold every picture out once, cut no part, and share each class's parts evenly."""
    group_counts = Counter(index for _, index in {(sample.group, sample.class_index) for sample in data.samples})
    if folds > max(group_counts.values()):
        with pytest.raises(DatasetError, match="folds cannot be made"):
            make_folds(data, seed, folds, 0.2)
        return
    found = make_folds(data, seed, folds, 0.2)
    assert sorted(path for fold in found for path in fold.held_out) == sorted(s.image for s in data.samples)
    for fold in found:
        assert sum(map(len, parts_on(fold).values())) == sum(group_counts.values())
        held = Counter(s.class_index for s in {s.group: s for s in fold.samples(data, fold.held_out)}.values())
        assert all(abs(held[index] - count / folds) < 1 for index, count in group_counts.items())


@settings(deadline=None)  # other work on the machine is no failure
@given(parts_of_random_sizes, st.data())
def test_by_time_what_is_held_out_is_later_than_what_taught(data: Dataset, drawn: st.DataObject) -> None:
    """No part that teaches or chooses began later than one that judges; none is cut."""
    hours = drawn.draw(st.lists(st.integers(0, 23), min_size=len(data.samples), max_size=len(data.samples)))
    timed = dataset([
        Sample(sample.image, "", sample.group, sample.class_index, time=f"2026-03-01T{hour:02}:00")
        for sample, hour in zip(data.samples, hours, strict=True)
    ])  # fmt: skip
    begun: dict[str, str] = defaultdict(lambda: "9")
    for sample in timed.samples:
        begun[sample.group] = min(begun[sample.group], sample.time)
    try:
        sides = parts_on(split_by_time(timed, 0.3, 0.2))
    except DatasetError:  # parts taken over the whole day leave nothing for a side
        return
    assert sum(map(len, sides.values())) == len(begun)
    last = {name: max(begun[group] for group in sides[name]) for name in ("training", "validation")}
    assert last["training"] < min(begun[group] for group in sides["validation"])
    assert last["validation"] < min(begun[group] for group in sides["held-out"])


def test_a_part_that_straddles_the_cut_stays_early() -> None:
    """Of ten pictures the last two would be held out; the part that began before the cut takes its late one along."""
    samples = [Sample(f"{n}.png", "", f"p{n}", 0, time=f"2026-03-0{n}") for n in range(1, 10)]
    samples.append(Sample("late.png", "", "p1", 0, time="2026-03-09T23:00"))
    found = split_by_time(dataset(samples), 0.2, 0.2)
    assert found.held_out == ("9.png",)
    assert found.validation == ("7.png", "8.png")
    assert "late.png" in found.training


def test_parts_taken_over_the_whole_time_cannot_be_split_by_it() -> None:
    """Where every part began before the cut, the side that would be empty is named."""
    samples = [sample for number in range(4) for sample in part(f"p{number}", 0, time="2026-03-01")]
    samples += [Sample(f"p{n}/late.png", "", f"p{n}", 0, time="2026-03-09") for n in range(4)]
    with pytest.raises(DatasetError, match="nothing is left for"):
        split_by_time(dataset(samples), 0.2, 0.1)


def test_without_times_there_is_no_split_by_time() -> None:
    """The error counts the pictures without one, names the first, and says how to give times."""
    with pytest.raises(DatasetError, match=r"1 of 2 pictures have no time \(first: b/0.png\).*--groups"):
        split_by_time(dataset([*part("a", 0, time="2026"), *part("b", 0)]), 0.2, 0.1)


def test_a_seed_gives_the_same_split_again() -> None:
    """The same seed draws the same parts, another one others."""
    data = many_parts((20, 10))
    assert make_split(data, 4, 0.2, 0.15) == make_split(data, 4, 0.2, 0.15)
    assert make_split(data, 4, 0.2, 0.15) != make_split(data, 5, 0.2, 0.15)


def test_a_part_of_several_classes_counts_for_its_rarest_defect() -> None:
    """Three parts with scratches, which show good pictures and dents too, are dealt out as the scratches they are."""
    mixed = [sample for number in range(3) for sample in part(f"mixed-{number}", 0, 1, 2)]
    found = parts_on(make_split(dataset([*many_parts((30, 30)).samples, *mixed]), 1, 0.2, 0.15))
    for name in ("training", "validation", "held-out"):
        assert sum(group.startswith("mixed") for group in found[name]) == 1


def test_pictures_that_hang_together_stay_together() -> None:
    """Pictures of a near-duplicate set, and all others of their groups, are on one side."""
    data = many_parts((30, 0))
    chain = [[f"good-{n:03}/0.png", f"good-{n + 1:03}/1.png"] for n in range(6)]
    for seed in range(5):
        sides = parts_on(make_split(data, seed, 0.3, 0.2, together=chain))
        assert sum(bool(groups & {f"good-{n:03}" for n in range(7)}) for groups in sides.values()) == 1


def test_the_same_tile_called_good_and_defective_never_judges() -> None:
    """Where same-tile.txt joins a good group and a cracked one, the good pictures are left out, the cracked teach."""
    data = many_parts((9, 9))
    for seed in range(5):
        found = make_split(data, seed, 0.3, 0.2, [["good-000", "dent-000"]])
        assert set(found.left_out) == {f"good-000/{n}.png" for n in range(3)}
        assert {f"dent-000/{n}.png" for n in range(3)} <= set(found.training)
    for fold in make_folds(data, 1, 3, 0.2, [["good-000", "dent-000"]]):
        assert "dent-000/0.png" in fold.training
        assert len(fold.left_out) == 3


def test_a_part_with_good_and_bad_sides_is_no_contradiction() -> None:
    """A part whose own pictures are good and defective is shared out whole, nothing of it left out."""
    data = dataset([sample for number in range(6) for sample in part(f"p{number}", 0, 0, 1)])
    found = make_split(data, 1, 0.3, 0.2)
    assert found.left_out == ()
    assert len(parts_on(found)["held-out"]) == 2


def test_classes_come_from_the_truth_where_the_form_does_not_say() -> None:
    """Pictures whose labels decide need their class given; one that could not be read teaches."""
    data = dataset([sample for number in range(9) for sample in part(f"p{number}", None)])
    with pytest.raises(DatasetError, match="no picture's class is known"):
        make_split(data, 1, 0.3, 0.2)
    class_of = {f"p{number}/0.png": int(number < 4) for number in range(8)}
    found = make_split(data, 1, 0.3, 0.2, class_of=class_of)
    assert Counter(class_of[path] for path in found.held_out) == {0: 1, 1: 1}
    assert "p8/0.png" in found.training


def test_a_random_split_says_so_in_its_files(tmp_path: Path) -> None:
    """It cuts parts, every list begins with the remark, and reading it back keeps that in mind."""
    data = many_parts((20, 20))
    found = split_at_random(data, 1, 0.2, 0.15)
    sides = parts_on(found)
    assert sides["held-out"] & sides["training"]
    write_split(found, tmp_path)
    for name in ("held-out.txt", "validation.txt"):
        assert (tmp_path / name).read_text().startswith(f"{RANDOM_REMARK}\n")
    assert set(read_split(data, tmp_path).held_out) == set(found.held_out)
    assert read_split(data, tmp_path).cuts_groups


def test_a_split_is_read_back_and_takes_old_lists_away(tmp_path: Path) -> None:
    """What is in no list teaches; a list of an earlier split does not stay behind."""
    data = many_parts((9, 9))
    write_split(make_split(data, 3, 0.3, 0.2, [["good-000", "dent-000"]]), tmp_path)
    assert (tmp_path / "left-out.txt").is_file()
    found = make_split(data, 3, 0.3, 0.2)
    write_split(found, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held-out.txt", "validation.txt"]
    again = read_split(data, tmp_path)
    assert {name: set(paths) for name, paths in again.sides().items()} == {
        name: set(paths) for name, paths in found.sides().items()
    }
    assert again.side_of()[found.held_out[0]] == "held-out"


def test_a_split_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """A missing list, a picture that is not there, one on two sides, bytes that are no text: one line each."""
    data = many_parts((3, 3))
    with pytest.raises(DatasetError, match="aoi dataset split DATA --out"):
        read_split(data, tmp_path)
    (tmp_path / "validation.txt").write_text("good-000/0.png\nother.png\n")
    with pytest.raises(DatasetError, match=r"names other\.png"):
        read_split(data, tmp_path)
    (tmp_path / "validation.txt").write_text("good-000/0.png\n")
    (tmp_path / "held-out.txt").write_text("good-000/0.png\n")
    with pytest.raises(DatasetError, match="twice"):
        read_split(data, tmp_path)
    (tmp_path / "held-out.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="cannot be read as text"):
        read_split(data, tmp_path)


@pytest.mark.parametrize("shares", [(0.8, 0.2), (-0.1, 0.2), (1.0, 0.0)])
def test_shares_must_leave_something_to_teach(shares: tuple[float, float]) -> None:
    """Two shares that take everything, or a negative one, are refused."""
    with pytest.raises(DatasetError, match="below 1 together"):
        make_split(many_parts((9, 9)), 1, *shares)


def test_groups_and_pictures_that_are_not_there_are_refused() -> None:
    """A name in same-tile.txt, or a picture in a set, that the data lacks is told by name."""
    data = many_parts((3, 3))
    with pytest.raises(DatasetError, match=r"same-tile\.txt names the group 'free-900'"):
        make_split(data, 1, 0.2, 0.1, [["good-000", "free-900"]])
    with pytest.raises(DatasetError, match=r"picture 'lost\.png'"):
        make_split(data, 1, 0.2, 0.1, together=[["lost.png"]])


def test_the_shipped_split_of_the_magnetic_tiles_is_drawn_again() -> None:
    """Seed and shares of the shipped model give its lists, but for the classes of the one tile broken and cracked."""
    index = shared("magnetic-tile") / "groups.csv"
    rows = sorted(csv.DictReader(index.open()), key=lambda row: row["image"])
    names = ("free", *sorted({row["class"] for row in rows} - {"free"}))
    samples = [Sample(row["image"], "", row["group"], names.index(row["class"])) for row in rows]
    data = Dataset(index.parent, "class-folders", names, tuple(samples), nothing_marked)
    shipped = MODELS / "magnetic-tile"
    found, again = make_split(data, 1, 0.2, 0.15, read_same_tile(shipped)), read_split(data, shipped)
    assert set(found.left_out) == set(again.left_out)
    drawn_anew = ("MT_Break/", "MT_Crack/")
    for name, paths in found.sides().items():
        assert {path for path in paths if not path.startswith(drawn_anew)} == {
            path for path in again.sides()[name] if not path.startswith(drawn_anew)
        }
