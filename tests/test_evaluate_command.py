"""`aoi evaluate` from the command line: sides, folds, chosen rules, a report, and what is wrong told in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from training_pictures import grey, save, with_spot

from pipeline.errors import SourceError
from pipeline.evaluate_command import evaluate_
from pipeline.recipe import load_recipe


@pytest.fixture
def on_disk(tmp_path: Path) -> tuple[Path, Path]:
    """A model folder with its own lists, and a data folder by class."""
    model, data = tmp_path / "model", tmp_path / "data"
    for number in range(4):
        save(data / "good" / f"g{number}.jpg", with_spot(side=4 if number == 3 else 0))
        save(data / "scratch" / f"s{number}.jpg", with_spot(side=16))
        save(data / "good" / f"g{number}.png", grey(0, 64, 64))
        save(data / "scratch" / f"s{number}.png", np.where(with_spot(side=16) == 255, 255, 0).astype(np.uint8))
    model.mkdir()
    (model / "net.fake").write_text('{"bright": 220}')
    stage = 'file = "net.fake"\nclasses = ["good", "scratch"]\n'
    (model / "recipe.toml").write_text(
        f'name = "r"\n[classifier]\n{stage}[segmenter]\n{stage}[batching]\nengine = "fake"\n'
    )
    (model / "held-out.txt").write_text("good/g0.jpg\nscratch/s0.jpg\nscratch/s1.jpg\n")
    (model / "validation.txt").write_text("good/g3.jpg\ngood/g1.jpg\nscratch/s2.jpg\n")
    return model, data


def run_evaluate(*arguments: object) -> tuple[str, str]:
    done = CliRunner().invoke(evaluate_, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


@pytest.mark.parametrize(("side", "n"), [("held-out", 3), ("validation", 3), ("training", 2), ("all", 8)])
def test_command_evaluates_a_side(on_disk: tuple[Path, Path], side: str, n: int) -> None:
    """The model folder's own lists say which pictures are on it; the JSON stands alone on stdout."""
    model, data = on_disk
    said, _ = run_evaluate(model, "--data", data, "--side", side, "--json")
    facts = json.loads(said)
    assert (facts["n"], facts["side"], facts["escape"]) == (n, side, 0)


def test_command_reads_the_lists_of_each_fold(on_disk: tuple[Path, Path], tmp_path: Path) -> None:
    """`{n}` is the recipe's number; every picture is judged once."""
    model, data = on_disk
    for number, names in enumerate(("good/g0.jpg\nscratch/s0.jpg\n", "good/g1.jpg\n")):
        fold = tmp_path / "split" / f"fold-{number}"
        fold.mkdir(parents=True)
        (fold / "held-out.txt").write_text(names)
        (fold / "validation.txt").write_text("scratch/s3.jpg\n")
    said, _ = run_evaluate(model, model, "--data", data, "--split", tmp_path / "split" / "fold-{n}", "--json")
    facts = json.loads(said)
    assert (facts["n"], facts["good"], len(facts["recipes"])) == (3, 2, 2)


def test_command_chooses_and_writes(on_disk: tuple[Path, Path]) -> None:
    """What was chosen on validation stands in the recipe, which is better for it; the summary fits a terminal."""
    model, data = on_disk
    said, warned = run_evaluate(model, "--data", data, "--side", "validation", "--choose", "--write")
    assert "[judge]" in said
    assert "too rosy" not in warned
    assert max(len(line) for line in said.splitlines()) <= 100
    recipe = load_recipe(str(model))
    assert recipe.judge.min_area_px > 16
    facts = json.loads(run_evaluate(model, "--data", data, "--side", "validation", "--json")[0])
    assert (facts["escape"], facts["overkill"]) == (0, 0)
    _, warned = run_evaluate(model, "--data", data, "--choose")
    assert "too rosy" in warned


def test_command_writes_a_report(on_disk: tuple[Path, Path], tmp_path: Path) -> None:
    """A page with the false alarm on it, the curve, and the figures."""
    pytest.importorskip("matplotlib", reason="the curve needs it; pip install '.[plots]'")
    model, data = on_disk
    run_evaluate(model, "--data", data, "--side", "all", "--report", tmp_path / "report", "--gallery", 3)
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "good/g3.jpg" in text
    assert text.count("<figure>") <= 3
    assert (tmp_path / "report" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "report" / "evaluation.json").read_text())["overkills"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--split", "nowhere"], "nowhere"),
        (["--form", "class-folders", "--good", "nothing"], "no class 'nothing'"),
    ],
)
def test_command_tells_what_is_wrong(on_disk: tuple[Path, Path], arguments: list[str], said: str) -> None:
    """One line, no traceback: `main` makes it an exit code."""
    model, data = on_disk
    with pytest.raises(SourceError, match=said):
        run_evaluate(model, "--data", data, *arguments)
