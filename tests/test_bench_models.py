"""What `bench models` measures and computes, what it shows, and what it refuses."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import RunBench
from rich.console import Console

from bench.models_compared import Held, accuracy_of, names_of, noise, turn
from bench.models_report import (
    BOTH,
    Model,
    ModelsReport,
    Speed,
    best,
    one_after_the_other,
    save,
    times_as_fast,
)
from bench.models_table import show_models
from engines.base import EngineOptions
from engines.fake import FakeEngine
from pipeline.errors import Exit, ReportError

MS = 1_000_000
STAGE = 'file = "net.fake"\nclasses = ["good", "scratch"]\n'
QUICK = ("--engine", "fake", "--rounds", 2, "--seconds", 0.01, "--batch", 3)


def make_folder(folder: Path, mode: str = "segment", side: int = 64, evaluation: object = None) -> Path:
    """A model folder of fake engines for square tiles."""
    folder.mkdir(parents=True)
    tables = f"[classifier]\n{STAGE}[segmenter]\n{STAGE}"
    (folder / "recipe.toml").write_text(f'name = "{folder.name}"\nmode = "{mode}"\n{tables}')
    (folder / "net.fake").write_text(json.dumps({"height": side, "width": side}))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def speed(model: str, stage: str, batch: int, *rounds: float, side: int = 256) -> Speed:
    """Of a network for grey square tiles."""
    return Speed(model=model, stage=stage, tile=(side, side, 1), batch=batch, rounds=rounds)


def a_report(**changes: object) -> ModelsReport:
    """A taught cascade, a taught segmenter ten times as slow, and one that is untaught."""
    report = ModelsReport(
        created="2025-11-21T03:00:00+00:00",
        machine={"cpu": "some", "usable_threads": 2, "memory_gib": 16.0},
        project={"version": "0.1.0", "commit": "abcdef0123", "changed_files": False},
        conditions={"load_average_before": 0.1},
        engine="fake",
        device="none",
        settings={"accuracy": "dice", "batches": [1, 8], "rounds": 3, "seconds": 1.0, "in_flight": 2, "threads": 0},
        against="slow",
        models=(
            Model(name="quick", recipe="quick@1", accuracy=0.8125, n=1267, side="held-out"),
            Model(name="slow", recipe="slow@2", accuracy=0.75, n=1267, side="held-out"),
            Model(name="new (untaught)", recipe="new-untaught@3", untaught=True),
        ),
        measured=(
            speed("quick", "classifier", 1, 300.0, 300.0, 300.0),
            speed("quick", "classifier", 8, 600.0, 600.0, 600.0),
            speed("quick", "segmenter", 1, 200.0, 100.0, 220.0),
            speed("quick", "segmenter", 8, 140.0, 140.0, 140.0),
            speed("slow", "segmenter", 1, 20.0, 10.0, 20.0),
            speed("slow", "segmenter", 8, 30.0, 30.0, 30.0),
            speed("new (untaught)", "classifier", 1, 64.0, 64.0, 64.0, side=512),
            speed("new (untaught)", "classifier", 8, 32.0, 32.0, 32.0, side=512),
        ),
    )
    return replace(report, **changes)  # type: ignore[arg-type]


# ------------------------------------------------------------------ arithmetic


def test_speed_is_told_per_tile_and_per_pixel() -> None:
    """100 tiles/s are 10 ms a tile; of a tile twice as large, half of that for 256×256 px."""
    one = speed("a", "segmenter", 1, 90.0, 100.0, 130.0)
    assert (one.tiles_per_s, one.ms_per_tile, one.ms_per_usual_tile) == pytest.approx((100, 10, 10))
    assert one.ms_per_mpx == pytest.approx(10 / 0.065536)
    assert one.spread == pytest.approx(0.2)
    wide = replace(one, tile=(256, 512, 1), rounds=(100.0,))
    assert wide.ms_per_usual_tile == pytest.approx(5)
    assert wide.spread is None


def test_ratio_is_the_median_of_those_within_each_round() -> None:
    """Per px, 1×, 2× and 1.5× in three rounds make 1.5×, although the medians of both would make 2×."""
    small = Speed(model="a", stage="segmenter", tile=(100, 100, 1), batch=1, rounds=(10.0, 20.0, 30.0))
    large = Speed(model="b", stage="segmenter", tile=(200, 100, 1), batch=1, rounds=(5.0, 5.0, 10.0))
    assert times_as_fast(small, large) == pytest.approx(1.5)
    assert times_as_fast(large, small) == pytest.approx(1 / 1.5)


def test_tile_through_both_stages_takes_the_time_of_both() -> None:
    """At 30 and 20 tiles/s it is 12 tiles/s; a classifier of tiles half as large has two of them to judge."""
    judge, marker = speed("a", "classifier", 1, 30.0), speed("a", "segmenter", 1, 20.0)
    assert one_after_the_other(judge, marker).rounds == pytest.approx((12,))
    half = replace(judge, tile=(128, 256, 1))
    assert one_after_the_other(half, marker).rounds == pytest.approx((1 / (2 / 30 + 1 / 20),))


def test_best_batch_is_the_fastest_and_of_equals_the_smallest() -> None:
    """A larger batch that gains nothing only costs latency."""
    sizes = [speed("a", "segmenter", size, rate) for size, rate in ((1, 5.0), (2, 9.0), (4, 9.0), (8, 7.0))]
    assert best(sizes).batch == 2


def test_rows_compare_like_with_like() -> None:
    """Batch 1 with batch 1, best with best; the same stage where the other has it, else all that the other has."""
    rows = [(r.speed.model, r.speed.stage, r.speed.batch, r.best, pytest.approx(r.ratio)) for r in a_report().rows()]
    assert rows == [
        ("quick", "classifier", 1, False, 15),  # 300/20, 300/10, 300/20
        ("quick", "classifier", 8, True, 20),
        ("quick", "segmenter", 1, False, 10),
        ("quick", "segmenter", 1, True, 200 / 30),  # its best is batch 1, the other's is 8
        ("quick", BOTH, 1, False, 1 / (1 / 300 + 1 / 220) / 20),  # 6, 7.5, 6.3
        ("quick", BOTH, 1, True, 4),  # 120/30
        ("slow", "segmenter", 1, False, 1),
        ("slow", "segmenter", 8, True, 1),
        ("new (untaught)", "classifier", 1, False, 4 * 64 / 20),  # of tiles four times as large
        ("new (untaught)", "classifier", 1, True, 4 * 64 / 30),
    ]


# ------------------------------------------------------------------ measuring


class Ticking:
    """A clock that moves by 10 ms whenever it is read."""

    now = -10 * MS

    def __call__(self) -> int:
        self.now += 10 * MS
        return self.now


def test_turn_counts_what_was_done_from_idle_to_idle(tmp_path: Path) -> None:
    """Two in flight and 25 ms: looked at after batch 1, 3, 5 and 6, six of four tiles are done after 50 ms."""
    folder = make_folder(tmp_path / "m")
    with FakeEngine(folder / "net.fake", "segmenter", ("good", "bad"), EngineOptions(max_batch=4)) as engine:
        rate = turn(engine, noise(engine.spec.tile_shape, 4), 25 * MS, Ticking())
    assert rate == pytest.approx(6 * 4 / 0.050)


@pytest.mark.parametrize(("short", "opened"), [(False, 1), (True, 3)])
def test_engine_stays_open_between_turns_where_memory_allows(short: bool, opened: int, tmp_path: Path) -> None:
    """Opened once for all its turns, or for each of them; closed at the end in any case."""

    class Counted(FakeEngine):
        entered = left = 0

        def __enter__(self) -> Counted:
            self.entered += 1
            super().__enter__()
            return self

        def __exit__(self, *exc: object) -> None:
            self.left += 1
            super().__exit__(*exc)

    folder = make_folder(tmp_path / "m")
    engine = Counted(folder / "net.fake", "segmenter", ("good", "bad"), EngineOptions())
    with Held(lambda: short) as held:
        for _ in range(3):
            with held.opened(engine) as same:
                same.submit(noise(same.spec.tile_shape, 1)[0]).result()
    assert (engine.entered, engine.left) == (opened, opened)


def test_models_of_one_name_are_told_apart() -> None:
    """By as much of the path above them as it takes; a folder given twice is refused."""
    paths = [Path("a/fold-0"), Path("b/fold-0"), Path("b/other")]
    assert names_of(paths) == ["a/fold-0", "b/fold-0", "other"]
    with pytest.raises(ReportError, match="given twice"):
        names_of([Path("a"), Path("a")])


# ------------------------------------------------------------------ accuracy


def test_accuracy_is_read_and_may_be_missing(tmp_path: Path) -> None:
    """Of the evaluation in the folder: the figure, its pictures and their side; null and no file are no accuracy."""
    facts = {"n": 40, "side": "held-out", "dice": 0.5, "map": None}
    folder = make_folder(tmp_path / "m", evaluation=facts)
    assert accuracy_of(folder, "dice") == {"accuracy": 0.5, "n": 40, "side": "held-out"}
    assert accuracy_of(folder, "map")["accuracy"] is None
    assert accuracy_of(folder, "f1")["accuracy"] is None
    assert accuracy_of(make_folder(tmp_path / "none"), "dice") == {}


@pytest.mark.parametrize(
    ("content", "told"),
    [("{", "cannot be read"), ("[]", "not what"), ('{"dice": 1}', "not what"), ('{"n": 3, "dice": 80}', "share 0…1")],
)
def test_spoilt_evaluation_is_refused(content: str, told: str, tmp_path: Path) -> None:
    """Rather than plotted, or taken for none."""
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(ReportError, match=told) as error:
        accuracy_of(tmp_path, "dice")
    assert str(tmp_path) in str(error.value)


# ------------------------------------------------------------------ report, table, plot


def test_report_survives_its_json(tmp_path: Path) -> None:
    """What is read back is what was written, through a file; the summary follows from it again."""
    report = a_report()
    path = save(report, tmp_path)
    assert path.name == "models-fake-20251121T030000.json"
    table = json.loads(path.read_text())
    assert ModelsReport.from_json(table) == report
    assert [row["times_as_fast"] for row in table["summary"] if row["model"] == "slow"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda table: table.update(schema=2), "schema 2, this software reads 1"),
        (lambda table: table.update(kind="single"), "not a report"),
        (lambda table: table.pop("machine"), "incomplete"),
        (lambda table: table["measured"][0].pop("rounds"), "incomplete"),
    ],
)
def test_foreign_report_is_refused(spoil: Callable[[dict[str, Any]], object], told: str) -> None:
    """Another schema or something else: one line that says so."""
    table = json.loads(json.dumps(a_report().as_json()))
    spoil(table)
    with pytest.raises(ReportError, match=told):
        ModelsReport.from_json(table)


def test_models_are_not_compared_as_if_they_were_runs(tmp_path: Path, run_bench: RunBench) -> None:
    """`bench compare` says in one line that this is no report of its kind."""
    path = save(a_report(), tmp_path)
    code, _, err = run_bench("compare", path, path)
    assert code == Exit.USAGE
    assert "not a report of `bench single` or `bench batch`" in err


def shown(report: ModelsReport) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(show_models(report))
    return capture.get()


def test_table_tells_speed_ratio_and_accuracy() -> None:
    """One line per stage and batch, within 100 columns; the accuracy with its pictures, or that there is none."""
    told = shown(a_report())
    first = "quick classifier 256×256 1 300 0% 3.33 50.9 15.0× 0.812 1,267"
    of_new = "new (untaught) classifier 512×512 1 64.0 0% 15.6 59.6 12.8× – –"
    best_of_new = "→ 1 64.0 0% 15.6 59.6 8.53×"
    assert {first, of_new, best_of_new} <= {" ".join(line.split()) for line in told.splitlines()}
    assert max(map(len, told.splitlines())) <= 100
    assert "it has no accuracy" in told
    assert "do not compare" not in told
    assert "believe the ratios only" not in told


def test_table_warns_of_what_cannot_be_believed() -> None:
    """Accuracies on different pictures, and a machine that had other work to do."""
    report = a_report(conditions={"load_average_before": 1.5})
    quick, slow, new = report.models
    told = shown(replace(report, models=(quick, replace(slow, n=80), new)))
    assert "1.5 processes were busy on 2 threads" in told
    assert "different pictures (1267 held-out, 80 held-out)" in told


@pytest.mark.parametrize("key", ["dice", "escape"])
def test_names_on_the_plot_lie_beside_one_another(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine models within a few per cent of one another: no name covers another; better is up, also for escapes."""
    plot = pytest.importorskip("bench.models_plot", reason="the plot is an extra: pip install 'inline-aoi[plots]'")
    names = [f"model-{number}" for number in range(9)]
    models = tuple(Model(name=name, recipe="r", accuracy=0.80 + 0.002 * i, n=99) for i, name in enumerate(names))
    speeds = [speed(n, "segmenter", b, 100.0 + 5 * i + b) for i, n in enumerate(names) for b in (1, 8)]
    settings = {**a_report().settings, "accuracy": key}
    kept: list[Any] = []
    monkeypatch.setattr(plot.plt, "close", kept.append)
    path = tmp_path / "p.png"
    plot.draw(a_report(models=models, measured=tuple(speeds), against=names[0], settings=settings), path)
    monkeypatch.undo()
    ax = kept[0].axes[0]
    kept[0].canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    plot.plt.close(kept[0])
    assert len(boxes) == 9
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert ax.yaxis_inverted() == (key == "escape")
    assert path.read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------ the command


def test_models_are_measured_and_kept(tmp_path: Path, run_bench: RunBench) -> None:
    """Every stage at every batch size in every round; JSON alone on stdout, the same in the file, a plot beside it."""
    pytest.importorskip("matplotlib", reason="the plot is an extra: pip install 'inline-aoi[plots]'")
    facts = {"n": 40, "side": "held-out", "miou": 0.5}
    pair = make_folder(tmp_path / "pair", "cascade", evaluation=facts)
    single = make_folder(tmp_path / "single", side=32)
    out = tmp_path / "out"
    choices = ("--against", "single", "--accuracy", "miou", "--out", out, "--json")
    code, told, err = run_bench("models", pair, single, *QUICK, *choices)
    assert code == Exit.OK, err
    (kept,) = out.glob("models-fake-*.json")
    assert json.loads(kept.read_text()) == json.loads(told)
    assert kept.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    report = ModelsReport.from_json(json.loads(told))
    assert [(s.model, s.stage, s.batch, len(s.rounds)) for s in report.measured] == [
        (model, stage, batch, 2)
        for model, stage in (("pair", "classifier"), ("pair", "segmenter"), ("single", "segmenter"))
        for batch in (1, 3)
    ]
    assert {s.tile for s in report.measured} == {(64, 64, 1), (32, 32, 1)}
    assert [(model.accuracy, model.n) for model in report.models] == [(0.5, 40), (None, None)]
    assert report.machine["versions"]
    assert err.index("round 1: single") < err.index("round 2: single") < err.index("round 2: pair")


def test_untaught_networks_are_measured_beside_taught_ones(tmp_path: Path, run_bench: RunBench) -> None:
    """Made for this run, run by the cpu engine, named as untaught everywhere, and without an accuracy."""
    pytest.importorskip("torch", reason="training is an extra: pip install 'inline-aoi[train]'")
    pytest.importorskip("openvino", reason="the cpu engine is an extra: pip install 'inline-aoi[cpu]'")
    networks = ("--untrained", "lcd-unet-2,unet-2,lcd-unet-2", "--tile", 32, 48)
    quick = ("--batch", 2, "--rounds", 1, "--seconds", 0.01, "--against", "unet-2", "--out", tmp_path / "out")
    code, told, err = run_bench("models", *networks, *quick, "--json")
    assert code == Exit.OK, err
    report = ModelsReport.from_json(json.loads(told))
    assert report.against == "unet-2 (untaught)"
    assert [model.name for model in report.models] == ["lcd-unet-2 (untaught)", "unet-2 (untaught)"]
    assert all(model.untaught and model.accuracy is None and "untaught" in model.recipe for model in report.models)
    assert {(s.stage, s.tile) for s in report.measured} == {("segmenter", (32, 48, 1))}


def test_untaught_networks_are_those_that_the_presets_teach() -> None:
    """With a preset's options and input, or those of a network of the same role; a width where one is named."""
    pytest.importorskip("torch", reason="training is an extra: pip install 'inline-aoi[train]'")
    from engines.training.untrained import lesson_of  # noqa: PLC0415

    assert lesson_of("resnet-50").input == (256, 256)
    assert (lesson_of("mobilenet-v1").network, lesson_of("mobilenet-v1").input) == ("mobilenet-v1", (224, 224))
    assert lesson_of("lcd-unet-8").options == {"batch_norm": True, "width": 8}
    assert lesson_of("unet").options == {}
    assert lesson_of("inline").role == "pair"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], Exit.USAGE, "give model folders"),
        (["{here}/nothing"], Exit.RECIPE, "no recipe"),
        (["{model}", "{model}"], Exit.USAGE, "given twice"),
        (["{model}", "--against", "other"], Exit.USAGE, "there are: model"),
        (["{model}", "--batch", "2", "--max-batch", "4"], Exit.USAGE, "not both"),
        (["{model}", "--engine", "cpu"], Exit.ENGINE, "not an ONNX model"),
        (["{model}", "--out", "/proc/no"], Exit.DISK, "choose another --out"),
        (["--untrained", "unet-16,no-such"], Exit.SOURCE, "no network 'no-such'"),
        (["--untrained", "resnet-50-8"], Exit.SOURCE, "no network 'resnet-50-8'"),
        (["--untrained", "unet-2", "--tile", "40", "48"], Exit.SOURCE, "multiples of 16 px"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    arguments: list[str], code: Exit, told: str, tmp_path: Path, run_bench: RunBench
) -> None:
    """Before anything is measured."""
    if "--untrained" in arguments:
        pytest.importorskip("torch", reason="training is an extra: pip install 'inline-aoi[train]'")
    model = make_folder(tmp_path / "model")
    given = [word.format(here=tmp_path, model=model) for word in arguments]
    engine = [] if "--engine" in given else ["--engine", "fake"]
    ended, out, err = run_bench("models", *given, *engine, "--seconds", "0.01", "--rounds", "1")
    assert (ended, out) == (code, "")
    assert told in err
    assert "Traceback" not in err
    assert "round 1" not in err
