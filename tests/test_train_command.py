"""`aoi train` and `aoi export`: from a folder of labelled pictures to a model folder, whatever happens on the way."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_pictures import REPOSITORY, SIDE, grey, save, with_defect, write_pictures_with_defects

torch = pytest.importorskip("torch", reason="training is an extra: pip install 'inline-aoi[train]'")
pytest.importorskip("openvino", reason="an export is checked with the cpu engine: pip install 'inline-aoi[cpu]'")

import click  # noqa: E402
from click.testing import CliRunner  # noqa: E402

from engines import cpu, open_engine  # noqa: E402
from engines.base import Kind  # noqa: E402
from engines.datasets import open_dataset  # noqa: E402
from engines.datasets.labelled import DatasetError  # noqa: E402
from engines.training import fit, make_model, presets  # noqa: E402
from engines.training.kept_weights import kept  # noqa: E402
from pipeline.errors import SourceError  # noqa: E402
from pipeline.evaluation import Job, Settings, evaluate, try_rules  # noqa: E402
from pipeline.recipe import Model, Recipe, load_recipe  # noqa: E402
from pipeline.training_commands import export, train  # noqa: E402

TINY = ("--batch", 2, "--threads", 1, "--scale", 0.5, "--tile", 32, 32, "--validation", 0.25)
STAGES = {"cascade": ("classifier", "segmenter"), "classify": ("classifier",), "segment": ("segmenter",)}
NARROW: dict[str, tuple[dict[str, Any], ...]] = {
    "aoi-six-class": ({"input": (64, 64)},),
    "steel-cascade": ({"input": (64, 64), "options": {"width": 8}}, {"options": {"width": 4}}),
    "low-contrast": ({"options": {"width": 4}},),
}
KILLED_AFTER_A_LOOK = """
import os, signal, sys
from engines.training import fit
from pipeline.training_commands import train

def save_and_die(*what):
    keep(*what)
    os.kill(os.getpid(), signal.SIGKILL)

keep, fit._save = fit._save, save_and_die
train(sys.argv[1:])
"""


@dataclass(frozen=True)
class Said:
    """What a command printed."""

    out: str
    err: str


@pytest.fixture(scope="module", autouse=True)
def _small_and_steady() -> Iterator[None]:
    """Narrow networks (`test_networks` has the whole ones), one batch size instead of all, one thread."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cpu, "batch_sizes", lambda most: [most])
        for name, changes in NARROW.items():
            preset = presets.PRESETS[name]
            lessons = (replace(lesson, **change) for lesson, change in zip(preset.lessons, changes, strict=True))
            patched.setitem(presets.PRESETS, name, replace(preset, lessons=tuple(lessons)))
        yield
    torch.set_num_threads(threads)


def run(command: click.Command, *words: object) -> Said:
    """As `aoi` runs it: what goes wrong is raised."""
    result = CliRunner().invoke(command, list(map(str, words)), standalone_mode=False)
    if result.exception:
        raise result.exception
    return Said(result.stdout, result.stderr)


def refused(*words: object) -> str:
    """The one line with which a training does not begin."""
    with pytest.raises(SourceError) as error:
        run(train, *words)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures as `indexed_folder`, for all tests of this file; nobody changes them."""
    folder = tmp_path_factory.mktemp("data")
    write_pictures_with_defects(folder, 24)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """Our pair after four steps that nothing interrupted, and what was said on the way."""
    out = tmp_path_factory.mktemp("whole") / "squares"
    return out, run(train, "--data", data, "--out", out, *TINY, "--steps", 4)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.onnx"))}


def tile_shapes(recipe: Recipe) -> set[tuple[int, int, int]]:
    """(H, W, C) of the recipe's engines, as they say it themselves."""
    models: list[tuple[Kind, Model]] = [("classifier", recipe.classifier), ("segmenter", recipe.segmenter)]
    return {
        open_engine("cpu", recipe.model_path(model), kind, model.classes).spec.tile_shape
        for kind, model in models
        if kind in recipe.stages
    }


def check_model(folder: Path, mode: str, channels: int = 1) -> Recipe:
    """The folder is one that a line can use, and its card fits it."""
    recipe, card = load_recipe(str(folder)), (folder / "card.md").read_text("utf-8")
    files = hashes(folder)
    assert recipe.mode == mode
    assert sorted(files) == [f"{stage}.onnx" for stage in STAGES[mode]]
    for stage in STAGES[mode]:
        model: Model = getattr(recipe, stage)
        assert model.sha256 == files[model.file]
        assert f"| {model.file} | {stage} | {', '.join(model.classes)} | `{model.sha256}` |" in card
    assert tile_shapes(recipe) == {(32, 32, channels)}
    for place in (str(folder.parent), str(REPOSITORY), str(Path.home()), "/tmp"):
        assert place not in card
    return recipe


def test_the_whole_way_of_our_pair(trained: tuple[Path, Said]) -> None:
    """Files, recipe and card are there; progress is told on stderr, the figures on stdout."""
    folder, said = trained
    recipe = check_model(folder, "cascade")
    assert recipe.name == "squares"
    assert recipe.classifier.classes == recipe.segmenter.classes == ("good", "spot", "line")
    assert (recipe.picture.scale, recipe.picture.overlap) == (0.5, 16)
    assert "18 training, 6 validation" in said.err
    assert len(re.findall(r"step +\d  loss \d+\.\d+  validation \d\.\d+", said.err)) == 4
    assert "4/4" in said.err
    assert "escape" in said.out
    assert "step" not in said.out


def test_rules_are_chosen_and_written(trained: tuple[Path, Said], data: Path) -> None:
    """The recipe holds the point with the least overkill at the escape target, and the card says what it was worth."""
    folder, _ = trained
    recipe, dataset = load_recipe(str(folder)), open_dataset(data)
    validation = (folder / "validation.txt").read_text().splitlines()
    samples = [sample for sample in dataset.samples if sample.image in validation]
    measured = evaluate([Job(recipe, dataset, samples)], Settings())
    assert measured.escape.share == 0  # of four defective ones, so 2 % is none
    assert f"Escapes {measured.escape}, overkill {measured.overkill}" in (folder / "card.md").read_text("utf-8")
    best = try_rules(measured).chosen
    assert best is not None
    assert (best.escape, best.overkill, best.meets_target) == (measured.escape, measured.overkill, True)


def test_the_card_tells_command_and_data_without_places(trained: tuple[Path, Said]) -> None:
    """The command can be given again anywhere, and the sides are counted."""
    card = (trained[0] / "card.md").read_text("utf-8")
    command = "aoi train --data DATA --out MODEL --validation 0.25 --scale 0.5 --tile 32 32 --steps 4 --batch 2"
    assert f"{command} --threads 1\n" in card
    assert "aoi evaluate MODEL --data DATA --side all\n" in card  # nothing was held out
    assert "| training, pictures (parts) | – | – | – | 18 (18) |" in card
    assert "Left out" not in card


def test_a_killed_training_ends_in_the_same_files(trained: tuple[Path, Said], data: Path, tmp_path: Path) -> None:
    """SIGKILL after the first look; the same command again goes on, and its files are those of one in one go."""
    words = ["--data", data, "--out", tmp_path / "squares", *TINY, "--steps", 4]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_A_LOOK, *map(str, words)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not list((tmp_path / "squares").glob("*.onnx"))
    said = run(train, *words)
    assert "going on from step 1 of 4" in said.err
    assert hashes(tmp_path / "squares") == hashes(trained[0])
    check_model(tmp_path / "squares", "cascade")


def test_a_finished_training_is_not_taught_again_until_its_data_changes(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given again, the command goes on to the export at once; a mask that was put right makes it another training."""
    out, taught = tmp_path / "model", []
    words = ["--data", coloured, "--out", out, *TINY, "--preset", "lcd-unet", "--steps", 1]
    run(train, *words)
    check_model(out, "segment", channels=3)

    def reached(*what: object) -> None:
        raise DatasetError("far enough")

    monkeypatch.setattr(make_model, "export_files", reached)
    steps = fit._step
    monkeypatch.setattr(fit, "_step", lambda *what: taught.append(what) or steps(*what))
    assert refused(*words) == "far enough"
    assert not taught
    judging = (out / "validation.txt").read_text().split()
    teaching = (f"{number}.png" for number in range(1, 12) if f"image/{number}.png" not in judging)
    save(coloured / "label" / next(teaching), grey(1, SIDE, SIDE))
    assert refused(*words) == "far enough"
    assert len(taught) == 1


@pytest.fixture
def coloured(tmp_path: Path) -> Path:
    """Squares that differ from their surroundings by colour; the first picture is broken."""
    for number in range(12):
        pixels, labels = with_defect(number % 2, number)
        plane = pixels // 2 + 40
        save(tmp_path / "data" / "image" / f"{number}.png", np.dstack([plane, pixels, 255 - pixels]))
        save(tmp_path / "data" / "label" / f"{number}.png", labels)
    (tmp_path / "data" / "classes.txt").write_text("good\nspot\n")
    (tmp_path / "data" / "image" / "0.png").write_bytes(b"no picture")
    return tmp_path / "data"


def test_lcd_unet_with_little_time_and_bad_pictures(indexed_folder: Path, tmp_path: Path) -> None:
    """Hardly any minutes still end in a whole model; each item that cannot be read is told with its reason."""
    (indexed_folder / "image" / "000000.png").write_bytes(b"no picture")
    save(indexed_folder / "label" / "000001.png", grey(0, 8, 8))
    save(indexed_folder / "label" / "000002.png", grey(9, SIDE, SIDE))
    (indexed_folder / "label" / "000003.png").unlink()
    words = ["--data", indexed_folder, "--out", tmp_path / "lcd", *TINY, "--preset", "lcd-unet"]
    said = run(train, *words, "--minutes", 1e-6)
    assert check_model(tmp_path / "lcd", "segment").segmenter.classes == ("good", "spot", "line")
    assert "10/10" in said.err  # a step for each look, of 2400
    card = (tmp_path / "lcd" / "card.md").read_text("utf-8")
    for name, reason in (
        ("000000", "cannot be decoded"),
        ("000001", "8×8 px"),
        ("000002", "9"),
        ("000003", "has no mask"),
    ):
        line = next(line for line in said.err.splitlines() if line.startswith(f"skipped image/{name}.png: "))
        assert reason in line
        assert f"image/{name}.png ({line.partition(': ')[2]})" in card


def test_aoi_six_class(data: Path, tmp_path: Path) -> None:
    """One classifier, its other network and a contrast step; the threshold is chosen."""
    options = ("--preset", "aoi-six-class", "--network", "mobilenet-v1", "--contrast", "clahe", "--steps", 2)
    run(train, "--data", data, "--out", tmp_path / "six", *TINY, *options)
    recipe = check_model(tmp_path / "six", "classify")
    assert recipe.picture.contrast == "clahe"
    ((blueprint, _),) = kept(tmp_path / "six")
    assert (blueprint.network, blueprint.input) == ("mobilenet-v1", (64, 64))


def test_steel_cascade(data: Path, tmp_path: Path) -> None:
    """A gate of good and defective at the system's own threshold, and a sigmoid per class behind it."""
    run(train, "--data", data, "--out", tmp_path / "steel", *TINY, "--preset", "steel-cascade", "--steps", 2)
    recipe = check_model(tmp_path / "steel", "cascade")
    assert recipe.classifier.threshold == 0.01
    assert recipe.classifier.classes == ("good", "defective")
    assert recipe.segmenter.classes == ("good", "spot", "line")
    assert sorted(blueprint.network for blueprint, _ in kept(tmp_path / "steel")) == ["res-unet", "resnet-50"]


def test_low_contrast_with_another_loss(data: Path, tmp_path: Path) -> None:
    """A split that is given is used and kept beside the model; what it holds out is left alone."""
    dataset = open_dataset(data)
    names = [sample.image for sample in dataset.samples]
    split = tmp_path / "split"
    split.mkdir()
    (split / "validation.txt").write_text("\n".join(names[:6]))
    (split / "held-out.txt").write_text("\n".join(names[6:9]))
    words = ("--preset", "low-contrast", "--loss", "focal", "--steps", 2, "--split", split)
    said = run(train, "--data", data, "--out", tmp_path / "low", *TINY, *words)
    check_model(tmp_path / "low", "segment")
    assert "15 training, 6 validation, 3 held-out" in said.err
    for name in ("validation.txt", "held-out.txt"):
        assert (tmp_path / "low" / name).read_text().split() == (split / name).read_text().split()
    card = (tmp_path / "low" / "card.md").read_text("utf-8")
    assert "--split SPLIT" in card
    assert "aoi evaluate MODEL --data DATA --side held-out\n" in card


def test_golden_templates_are_laid_onto_their_boards(tmp_path: Path) -> None:
    """Data with templates teaches on picture, template and difference; a board unlike its own is left out."""
    rng = np.random.default_rng(0)
    board = rng.integers(60, 180, (16, 16), np.uint8).repeat(8, 0).repeat(8, 1)
    for number in range(12):
        folder, tested = tmp_path / "pcb" / f"group{number}", np.roll(board, (2, -1), (0, 1))
        if number % 2:
            x, y = 20 + 6 * number, 90 - 6 * number
            tested[y : y + 10, x : x + 10] = 255
        box = f"{x} {y} {x + 10} {y + 10} 1\n" if number % 2 else ""
        save(folder / "1" / f"{number:08d}_test.jpg", tested if number else 255 - board)
        save(folder / "1" / f"{number:08d}_temp.jpg", board)
        (folder / "1_not").mkdir()
        (folder / "1_not" / f"{number:08d}.txt").write_text(box)
    words = ("--data", tmp_path / "pcb", "--out", tmp_path / "boards", "--preset", "lcd-unet", "--steps", 1)
    said = run(train, *words, *TINY)
    recipe = check_model(tmp_path / "boards", "segment", channels=3)
    assert recipe.template.used
    assert "skipped group0/1/00000000_test.jpg: picture looks too little like its golden template" in said.err
    ((blueprint, _),) = kept(tmp_path / "boards")
    assert (blueprint.channels, blueprint.template) == (3, True)


def test_a_model_is_exported_for_another_tile(trained: tuple[Path, Said], tmp_path: Path) -> None:
    """Other files of the same weights, with the recipe's rules; an overlap that is too large is made smaller."""
    folder, out = trained[0], tmp_path / "wide"
    said = run(export, folder, "--out", out, "--tile", 48, 96)
    before, after = load_recipe(str(folder)), load_recipe(str(out))
    assert (after.judge, after.classifier.threshold) == (before.judge, before.classifier.threshold)
    assert {after.classifier.sha256, after.segmenter.sha256} == set(hashes(out).values())
    assert not set(hashes(out).values()) & set(hashes(folder).values())
    assert tile_shapes(after) == {(48, 96, 1)}
    assert "measure it again before use" in said.err
    with pytest.raises(SourceError, match="multiples of 16 px"):
        run(export, folder, "--out", out, "--tile", 50, 96)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "recipe.toml").write_bytes((folder / "recipe.toml").read_bytes())
    with pytest.raises(SourceError, match="holds no weights"):
        run(export, tmp_path / "bare", "--out", out, "--tile", 64, 64)


def test_presets_are_listed_with_their_minutes() -> None:
    """Every one by name, and nothing else is needed for that."""
    said = run(train, "--list").out
    assert all(f"{name} " in said for name in presets.PRESETS)
    assert "≤ 40" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--preset", "unet"), "no preset 'unet'; `aoi train --list` tells: inline, lcd-unet"),
        (("--network", "vgg"), "no network 'vgg'; there are: inline, unet"),
        (("--network", "unet"), "preset inline has no place for unet"),
        (("--loss", "dice"), "preset inline has no loss to choose"),
        (("--preset", "lcd-unet", "--loss", "mse"), "no loss 'mse'; there are: bce, dice"),
        (("--device", "abacus"), "device 'abacus' cannot be trained on here; there are: cpu"),
        (("--device", "cuda:99"), "device 'cuda:99' cannot be trained on here"),
        (("--tile", "40", "64"), "tiles of 40×64 px do not suit the network; give multiples of 16 px"),
        (("--split", "nowhere"), "nowhere has no validation.txt"),
        (("--rate", "1e30", "--steps", "3", *map(str, TINY)), "lower --rate"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words: tuple[str, ...], reason: str, data: Path, tmp_path: Path) -> None:
    """Names with what there is instead, values with what to give; no model is left behind."""
    assert reason in refused("--data", data, "--out", tmp_path / "model", *words)
    assert not (tmp_path / "model" / "recipe.toml").exists()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """And so is an option that is missing."""
    assert "does not exist; correct the path" in refused("--data", tmp_path / "x", "--out", tmp_path / "model")
    with pytest.raises(click.UsageError, match="--data and a model folder with --out"):
        run(train, "--data", tmp_path)


def only_good(folder: Path) -> None:
    for number in range(6):
        save(folder / "image" / f"{number}.png", with_defect(0, number)[0])
        save(folder / "label" / f"{number}.png", grey(0, SIDE, SIDE))


def unmarked(folder: Path) -> None:
    for number in range(12):
        save(folder / ("good", "dent")[number % 2] / f"{number}.png", with_defect(number % 2, number)[0])


def two_of_a_kind(folder: Path) -> None:
    write_pictures_with_defects(folder, 6)


def broken(folder: Path) -> None:
    unmarked(folder)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("make", "preset", "reason"),
    [
        (only_good, "inline", "the training side holds no defective picture"),
        (unmarked, "lcd-unet", "the training side holds no defect that is marked"),
        (two_of_a_kind, "inline", "the split leaves no validation pictures"),
        (broken, "inline", "see what was skipped"),
    ],
)
def test_data_that_cannot_teach_is_refused(make: object, preset: str, reason: str, tmp_path: Path) -> None:
    """What is missing, and what to do about it."""
    make(tmp_path / "data")  # type: ignore[operator]
    if make is only_good:
        (tmp_path / "data" / "classes.txt").write_text("good\ndent\n")
    words = ("--data", tmp_path / "data", "--out", tmp_path / "model", "--preset", preset, *TINY)
    assert reason in refused(*words)
