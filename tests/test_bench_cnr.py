"""`bench cnr`: how faint a defect may be, for models whose answer is known beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import RunBench

from bench.cnr import BOX_FILTER
from pipeline.errors import Exit

CLASSES = 'classes = ["background", "defect"]'


def make_threshold_model(folder: Path, level: int, mode: str = "segment") -> Path:
    """A model that marks every pixel from a grey level on."""
    folder.mkdir()
    (folder / "net.fake").write_text(json.dumps({"height": 256, "width": 256, "bright": level}))
    stage = "segmenter" if mode == "segment" else "classifier"
    (folder / "recipe.toml").write_text(
        f'name = "{folder.name}"\nmode = "{mode}"\n[batching]\nengine = "fake"\n'
        f'[{stage}]\nfile = "net.fake"\n{CLASSES}\n'
    )
    return folder


def test_curves_of_thresholds_in_almost_no_noise(tmp_path: Path, run_bench: RunBench) -> None:
    """Background 112: a level of 122 finds defects from 10 grey levels on, wholly, and none below."""
    sharp, blind = (make_threshold_model(tmp_path / name, level) for name, level in (("sharp", 122), ("blind", 250)))
    given = ("--contrast", 2, 18, "--noise", 0.1, "--steps", 2, "--pictures", 12, "--out", tmp_path / "out", "--json")
    code, out, _ = run_bench("cnr", sharp, blind, *given)
    assert code == Exit.OK
    told = json.loads(out)
    assert told["edges"] == pytest.approx([20, 100, 180], abs=0.01)
    assert sum(told["defects"]) == 24
    curves = {curve["name"]: curve for curve in told["curves"]}
    assert list(curves) == [BOX_FILTER, "sharp", "blind"]
    assert curves["sharp"]["by_step"] == pytest.approx([0, 1], abs=0.15)  # grey levels are rounded: 9.6 is 10
    assert curves["sharp"]["recall_by_step"][1] == 1
    assert curves["blind"]["by_step"] == [0, 0]
    assert 0.5 < curves[BOX_FILTER]["dice"] < 1  # it blurs the edges
    (report,) = (tmp_path / "out").glob("cnr-*.json")
    assert json.loads(report.read_text()) == told
    assert report.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_table_in_a_terminal(tmp_path: Path, run_bench: RunBench) -> None:
    """A column a step and one of all, nothing cut off."""
    model = make_threshold_model(tmp_path / "some-model", 122)
    code, out, _ = run_bench("cnr", model, "--pictures", 3, "--steps", 8, "--out", tmp_path / "out")
    assert code == Exit.OK
    assert "…" not in out
    assert "some-model" in out
    assert "Gaussian noise σ 7" in out


def test_what_is_refused(tmp_path: Path, run_bench: RunBench) -> None:
    """Shapes nobody draws, contrasts the wrong way about, a model without pixels: one line, nothing written."""
    model = make_threshold_model(tmp_path / "model", 122)
    gate = make_threshold_model(tmp_path / "gate", 122, "classify")
    out = ("--out", tmp_path / "out", "--pictures", 2)
    for given, said in (
        ((model, "--shapes", "star"), "shapes are star"),
        ((model, "--contrast", 9, 1), "least first"),
        ((gate,), "marks no pixels; give a model with a segmenter"),
        ((model, model), "given twice"),
    ):
        code, _, err = run_bench("cnr", *given, *out)
        assert code != Exit.OK
        assert said in err
    assert not list((tmp_path / "out").glob("*.json"))
