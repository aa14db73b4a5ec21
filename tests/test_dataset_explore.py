"""A data set before training: counted and measured, its duplicates found, its page written, the commands around it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from dataset_files import shared
from training_pictures import grey, save

from engines.datasets import FORMS, open_dataset
from engines.datasets.census import Census, advise, as_json, defects_of
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
from engines.datasets.exploration import explore
from engines.datasets.labelled import (
    IGNORED,
    Box,
    Dataset,
    DatasetError,
    Options,
    Picture,
    Sample,
    Shape,
    Truth,
)
from engines.datasets.split import RANDOM_REMARK, Split
from pipeline.dataset_commands import dataset as commands
from pipeline.errors import SourceError


def texture(seed: int, height: int = 150, width: int = 200) -> np.ndarray:
    """A part's surface: smooth noise that is like no other seed's."""
    noise = np.random.default_rng(seed).normal(0, 1, (height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return np.clip(120 + 35 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def taken_again(pixels: np.ndarray, seed: int) -> np.ndarray:
    """The same part darker, a little noisier, and cropped a few px elsewhere."""
    rng = np.random.default_rng(seed)
    left, top = rng.integers(0, 12, 2)
    cropped = pixels[top : top + pixels.shape[0] - 14, left : left + pixels.shape[1] - 14].astype(float)
    return np.clip(cropped * 0.7 + 10 + rng.normal(0, 3, cropped.shape), 0, 255).astype(np.uint8)


def picture(labels: np.ndarray, class_index: int = 1, boxes: tuple[Box, ...] | None = None) -> Picture:
    sample = Sample("a.png", "", "g", class_index)
    return Picture(sample, np.full_like(labels, 90), labels, class_index, boxes)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Eight parts taken three times, half of them dented; one file more that is no picture."""
    mask = grey(0, 136, 186)
    mask[40:50, 60:90] = 255
    for part in range(8):
        name = "dent" if part < 4 else "good"
        for turn in range(3):
            save(tmp_path / "parts" / name / f"p{part}-{turn}.png", taken_again(texture(part), 10 * part + turn))
            if name == "dent":
                save(tmp_path / "parts" / "masks" / name / f"p{part}-{turn}.png", mask)
    (tmp_path / "parts" / "good" / "broken.png").write_bytes(b"\x89PNG no more")
    return tmp_path / "parts"


@pytest.fixture
def listed(parts: Path) -> Dataset:
    """The same as a Dataset of one's own: each picture is a group of its own, one is missing."""
    paths = sorted(path.relative_to(parts).as_posix() for path in parts.rglob("p?-?.png") if "masks" not in path.parts)
    samples = [Sample(path, "", path, int(path.startswith("dent"))) for path in [*paths, "good/lost.png"]]

    def truth_of(sample: Sample, shape: Shape) -> Truth:
        labels = grey(0, *shape)
        if sample.class_index:
            labels[40:50, 60:90] = 1
        return Truth(sample.class_index or 0, labels)

    return Dataset(parts, "class-folders", ("good", "dent"), tuple(samples), truth_of)


def run(*words: object) -> Result:
    """A command as it runs below `aoi dataset`; what it cannot do is raised."""
    return CliRunner().invoke(commands, [str(word) for word in words], catch_exceptions=False, standalone_mode=False)


def prints_of(pictures: dict[str, np.ndarray], encode: Callable[[str], str] = lambda name: ".png") -> list[Fingerprint]:
    scale = thumbnail_scale([pixels.shape[:2] for pixels in pictures.values()])
    return [
        fingerprint(name, cv2.imencode(encode(name), pixels)[1].tobytes(), pixels, scale)
        for name, pixels in pictures.items()
    ]


def test_defects_are_connected_regions_with_area_width_and_extent() -> None:
    """A bar of 3 × 10 px, a diagonal of four px and a single px: hand-counted; what is not known is no defect."""
    labels = grey(0, 20, 30)
    labels[2:5, 1:11] = 1
    for step in range(4):
        labels[10 + step, 20 + step] = 1
    labels[19, 29] = 2
    labels[15:, :5] = IGNORED
    found = defects_of(labels)
    assert [(d.class_index, d.area, d.width, d.extent) for d in found] == [(1, 30, 3, 10), (1, 4, 1, 4), (2, 1, 1, 1)]


def test_where_boxes_are_the_truth_they_are_the_defects() -> None:
    """A box of 6 × 20 px is one defect of 120 px, whatever the labels say."""
    found = defects_of(grey(1, 40, 40), (Box(3, 4, 6, 20, 2),))
    assert [(d.class_index, d.area, d.width, d.extent) for d in found] == [(2, 120, 6, 20)]


def test_a_position_map_is_the_share_of_pictures_covered() -> None:
    """Of two pictures of different size one has its left half marked, the other all: 1 on the left, ½ on the right."""
    census = Census(("good", "dent"), "image-mask")
    labels = grey(1, 96, 192)
    census.add(picture(labels))
    labels = grey(1, 200, 100)
    labels[:, 50:] = 0
    census.add(picture(labels))
    cells = census.position_map(1)
    assert np.allclose(cells[:, :24], 1)
    assert np.allclose(cells[:, 24:], 0.5)
    assert not census.position_map(0).any()


def test_advice_follows_the_class_with_the_thinnest_defects() -> None:
    """Bars 11 and 5 px wide, 80 px long: scale 3/5, rounded up to 0.6, and tiles of 64 for 48 px; specks count not."""
    census = Census(("good", "dent", "scratch"), "image-mask")
    for _ in range(3):
        labels = grey(0, 100, 200)
        labels[10:21, 20:100] = 1
        labels[50:55, 20:100] = 2
        labels[90, 1:4] = 2
        census.add(picture(labels))
    advice = advise(census)
    assert advice is not None
    assert (advice.scale, advice.tile, advice.small_px, advice.long_px) == (0.6, 64, 5, 80)
    assert as_json(census)["specks"] == 3
    assert advise(Census(("good",), "image-mask")) is None


def test_a_part_taken_again_is_found_at_another_exposure_crop_and_noise() -> None:
    """Three takes of ten parts: each pair of the same part, no pair of two parts."""
    takes = {f"{part}-{turn}": taken_again(texture(part), turn) for part in range(10) for turn in range(3)}
    pairs = find_pairs(prints_of(takes))
    assert {(pair.first, pair.second) for pair in pairs} == {
        (f"{part}-{a}", f"{part}-{b}") for part in range(10) for a, b in ((0, 1), (0, 2), (1, 2))
    }
    assert {pair.kind for pair in pairs} == {"near"}
    assert proposed_groups(pairs) == [tuple(f"{part}-{turn}" for turn in range(3)) for part in range(10)]


def test_the_same_bytes_and_the_same_pixels_are_told_apart() -> None:
    """A copied file and one saved in another form are exact duplicates; each has its own name for it."""
    pixels = texture(1)
    formats = {"a": ".png", "b": ".png", "c": ".bmp", "d": ".png"}
    found = find_pairs(prints_of({"a": pixels, "b": pixels, "c": pixels, "d": texture(2)}, formats.__getitem__))
    assert [(p.first, p.second, p.kind) for p in found] == [("a", "b", "same bytes"), ("a", "c", "same pixels")]


def test_pictures_without_texture_are_not_alike() -> None:
    """Empty frames of different brightness show nothing, and so nothing that is the same."""
    assert find_pairs(prints_of({str(level): grey(level, 100, 140) for level in range(0, 250, 25)})) == []
    assert find_pairs([]) == []


def test_sets_hang_together_over_pairs_and_are_compared_with_a_split() -> None:
    """a–b and b–c make one set; it leaks where its pictures judge and teach, not where one of them is left out."""
    sets = proposed_groups([Pair("b", "c", "near", 0.9), Pair("a", "b", "near", 0.9), Pair("x", "y", "near", 0.9)])
    assert sets == [("a", "b", "c"), ("x", "y")]
    assert across(sets, Split(("a", "b", "x"), ("z",), ("c", "y")).side_of()) == sets
    assert across(sets, Split(("a", "b", "c", "x"), (), (), ("y",)).side_of()) == []


def test_parts_alike_by_design_are_no_duplicates(listed: Dataset) -> None:
    """Where most pictures hang together in one set, it says that looks do not tell, and keeps nothing together."""
    assert look_alike([tuple(map(str, range(30)))], 60)
    assert not look_alike([tuple(map(str, range(12)))], 12)  # a dozen takes of one part are just that
    for turn, sample in enumerate(listed.samples[:-1]):
        save(listed.folder / sample.image, taken_again(texture(99), turn))
    found = explore(listed)
    assert found.alike
    assert found.doubted() == []
    with pytest.raises(DatasetError, match=r"alike by design.*--groups"):
        found.joined()


def test_exposures_of_real_tiles_are_found() -> None:
    """Thirty tiles at six exposures: no pair of two tiles, and nearly every tile's pictures hang together."""
    index = shared("magnetic-tile") / "groups.csv"
    group_of = {row["image"]: row["group"] for row in csv.DictReader(index.open())}
    sizes = Counter(group_of.values())
    chosen = [group for group in sorted(sizes) if sizes[group] == 6][:: len(sizes) // 30]
    pictures = {
        name: cv2.imread(str(index.parent / name), cv2.IMREAD_GRAYSCALE)
        for name, group in group_of.items()
        if group in chosen
    }
    pairs = find_pairs(prints_of(pictures))
    assert all(group_of[pair.first] == group_of[pair.second] for pair in pairs)
    assert sum(len(paths) == 6 for paths in proposed_groups(pairs)) >= 0.9 * len(chosen)


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(listed: Dataset) -> None:
    """A missing picture is a problem with its reason; a set of which nothing can be read is refused."""
    found = explore(listed)
    assert [(p.path, p.reason) for p in found.census.problems] == [
        ("good/lost.png", "picture lost.png is missing")
    ]  # fmt: skip
    assert len(found.census.pictures) == 24
    with pytest.raises(DatasetError, match=r"no picture of .*first problem: good/lost\.png"):
        explore(replace(listed, samples=listed.samples[-1:]))


def test_scenes_over_groups_sides_and_labels_are_flagged(listed: Dataset) -> None:
    """Takes of one part in groups of their own, on two sides of a split, called good and dented: all are told."""
    images = [sample.image for sample in listed.samples[:-1]]
    swapped = tuple(
        replace(s, class_index=0) if s.image == "dent/p0-1.png" else s for s in listed.samples
    )  # fmt: skip
    split = Split(tuple(images[1:]), (), ("dent/p0-0.png",))
    found = explore(replace(listed, samples=swapped), split)
    assert len(found.over_groups()) == 8
    assert [paths[0] for paths in found.over_sides()] == ["dent/p0-0.png"]
    assert {pair.second for pair in found.torn()} == {"dent/p0-1.png", "dent/p0-2.png"}
    assert found.doubted() == [("dent/p0-0.png", "dent/p0-1.png", "dent/p0-2.png")]


def test_the_page_stands_alone_and_shows_hostile_names_as_they_are(parts: Path, tmp_path: Path) -> None:
    """Figures lie beside it and in it; no script, no address of the net, and a class's name is no markup."""
    pytest.importorskip("matplotlib", reason="figures need the extra `plots`")
    hostile = "<script>alert(1)"
    (parts / "dent").rename(parts / hostile)
    (parts / "masks" / "dent").rename(parts / "masks" / hostile)
    done = run("explore", parts, "--form", "class-folders", "--out", tmp_path / "out")
    assert "8 scenes taken more than once" in done.stdout
    assert f"page: {tmp_path / 'out' / 'index.html'}" in done.stderr
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "http" not in page
    assert "good/broken.png" in page
    names = [
        "areas", "brightness", "classes", "defects-per-picture", "positions", "samples", "sizes", "torn-pairs", "widths"
    ]  # fmt: skip
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png")) == names
    assert page.count("data:image/png;base64,") == 2 * len(names)
    with pytest.raises(SourceError, match="choose another --out"):
        run("explore", parts, "--form", "class-folders", "--out", tmp_path / "out" / "index.html")


def test_split_by_group_duplicates_keeps_takes_of_a_part_on_one_side(parts: Path, tmp_path: Path) -> None:
    """Without groups the takes of a part are torn; with --group-duplicates none are; broken files are told."""
    options = ("split", parts, "--form", "class-folders", "--held-out", 0.3, "--validation", 0.2, "--out")
    plain = run(*options, tmp_path / "plain")
    assert "every picture is a group of its own" in plain.stderr
    kept = run(*options, tmp_path / "kept", "--group-duplicates", "--json")
    assert "8 sets of near-duplicates kept together" in kept.stderr
    assert "left out: good/broken.png: picture broken.png cannot be decoded" in kept.stderr
    sides = json.loads(kept.stdout)[str(tmp_path / "kept")]
    assert {side: facts["pictures"] % 3 for side, facts in sides.items()} == {
        "training": 1, "validation": 0, "held-out": 0
    }  # fmt: skip
    found = run("explore", parts, "--form", "class-folders", "--split", tmp_path / "plain", "--json")
    assert json.loads(found.stdout)["split"]["sets_over_sides"]
    found = run("explore", parts, "--form", "class-folders", "--split", tmp_path / "kept", "--json")
    assert json.loads(found.stdout)["split"]["sets_over_sides"] == []


def test_folds_random_and_time_from_the_command_line(parts: Path, tmp_path: Path) -> None:
    """Folds get a folder each; random warns and marks its lists; time needs times; contradictions are refused."""
    groups = tmp_path / "parts.csv"
    images = [f"{path.parent.name}/{path.name}" for path in parts.rglob("p?-?.png") if "masks" not in path.parts]
    groups.write_text("image,group\n" + "".join(f"{image},{image[5:7]}\n" for image in images))
    options = ("split", parts, "--form", "class-folders", "--groups", groups)
    run(*options, "--out", tmp_path / "folds", "--folds", 4)
    held = [(tmp_path / "folds" / f"fold-{n}" / "held-out.txt").read_text().split() for n in range(4)]
    assert Counter(path for paths in held for path in paths if "broken" not in path) == Counter(images)
    drawn = run(*options, "--out", tmp_path / "random", "--by", "random")
    assert "warning: random split: pictures of one part are on both sides" in drawn.stderr
    assert (tmp_path / "random" / "held-out.txt").read_text().startswith(RANDOM_REMARK)
    with pytest.raises(SourceError, match="have no time"):
        run(*options, "--out", tmp_path / "time", "--by", "time")
    for wrong in (("--by", "time", "--folds", 3), ("--by", "random", "--group-duplicates")):
        with pytest.raises(click.UsageError, match="leave out"):
            run(*options, "--out", tmp_path / "wrong", *wrong)


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    """No such folder, one in no known form, a split that is none: SourceError, which becomes one line."""
    with pytest.raises(SourceError, match="does not exist"):
        run("explore", tmp_path / "none", "--json")
    with pytest.raises(SourceError, match="none of the known forms"):
        run("split", tmp_path, "--out", tmp_path / "out")


def test_any_form_is_written_as_coco(parts: Path, tmp_path: Path) -> None:
    """What was class folders comes back from COCO with the same labels; what cannot be read is told."""
    done = run("coco", parts, "--form", "class-folders", "--out", tmp_path / "coco" / "instances.json")
    assert "left out: good/broken.png" in done.stderr
    written = json.loads((tmp_path / "coco" / "instances.json").read_text())
    assert len(written["images"]) == 24
    assert [round(a["area"]) for a in written["annotations"]] == [300] * 12
    assert written["categories"] == [{"id": 1, "name": "dent"}]


def test_every_form_is_listed_with_its_layout() -> None:
    """`aoi dataset forms` names each form that is read and says how it looks on disk."""
    told = json.loads(run("forms", "--json").stdout)
    assert list(told) == list(FORMS)
    assert all(len(layout) > 60 for layout in told.values())
    assert "masks/scratch/a.png" in told["image-mask"]
    assert all(name in run("forms").stdout for name in FORMS)


def test_each_command_shows_an_example_and_what_its_options_do() -> None:
    """Every help has a line that starts with the command, and no option is without help."""
    context = click.Context(commands)
    for name, command in commands.commands.items():
        lines = [line.strip() for line in (command.help or "").splitlines()]
        assert any(line.startswith(f"aoi dataset {name}") for line in lines)
        assert all(p.help for p in command.get_params(context) if isinstance(p, click.Option))


def test_real_pictures_are_counted() -> None:
    """A dozen ball screws in labelme's form: as many pits as shapes were drawn, none of them good."""
    folder = shared("ball-screw-labelme")
    data = open_dataset(folder, Options(), "labelme")
    few = replace(data, samples=data.samples[:12])
    drawn = [json.loads((folder / sample.image).with_suffix(".json").read_text())["shapes"] for sample in few.samples]
    facts = as_json(explore(few).census)
    assert (facts["pictures"], facts["good"], facts["defects"]) == (12, 0, sum(map(len, drawn)))
