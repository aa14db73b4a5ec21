"""The chaos run and the soak: what they do to a line, what they count, and that they notice when it is broken."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import RunBench, wait_until

from bench.endurance import chaos as chaos_
from bench.endurance.chaos import Outcome, Plan, run_chaos
from bench.endurance.commands import judge_outcome
from bench.endurance.content import KINDS, SESSION, Content
from bench.endurance.faults import FAULTS
from bench.endurance.judge import Books, Tally
from bench.endurance.processes import Kept
from bench.endurance.server import Server
from bench.endurance.slopes import Slope, slope_of, student_t
from bench.endurance.soak import Plan as SoakPlan
from bench.endurance.soak import Soaked
from bench.load import Pictures
from pipeline.errors import Exit, LedgerError, MissedError
from pipeline.messages import Verdict
from pipeline.recipe import load_recipe
from pipeline.stream import Audit, SourceCount

BROKEN = """
import re, runpy, redis
from engines import ENGINES
ENGINES["deadly"] = "bench.endurance.deadly_engine:DeadlyEngine"
register = redis.Redis.register_script
def broken(self, script):
    return register(self, re.sub({find!r}, {put!r}, script) if script.startswith("-- settle") else script)
redis.Redis.register_script = broken
runpy.run_module("pipeline.cli", run_name="__main__", alter_sys=True)
"""


def quiet(word: str) -> None:
    """Nobody watches."""


# ------------------------------------------------------------------ the run


def test_line_that_is_broken_again_and_again_loses_nothing(tmp_path: Path) -> None:
    """Killed, stopped, cut off, out of memory, read-only, disk full: every frame has its one right verdict."""
    plan = Plan(frames=12_000, faults=len(FAULTS), seed=5, minutes=1.7)
    outcome = run_chaos(plan, tmp_path, quiet)
    judge_outcome(outcome)
    assert (outcome.offered, outcome.verdicts, outcome.duplicates, outcome.losses) == (12_000, 12_000, 0, 0)
    assert outcome.faults.keys() <= FAULTS.keys()
    assert len(outcome.faults) > len(FAULTS) * 2 / 3, "one of each kind comes first; few may have had no victim"
    assert outcome.judgements["UNINSPECTED: poison"] == 1 + outcome.innocent
    assert outcome.starts > plan.workers + plan.producers, "nothing that was killed was started again"
    assert outcome.audits > 20


@pytest.mark.parametrize(
    ("find", "put", "told"),
    [
        (r"( *redis.call\('XADD', KEYS\[3\].*\n)", r"\1\1", "has verdict number 2"),
        (r" *redis.call\('XADD', KEYS\[3\].*\n", "", "no verdict: producer"),
        (r" *add\('judged.*\n", "", "the ledger does not balance"),
    ],
    ids=["publishes twice", "publishes nothing", "does not count"],
)
def test_broken_stream_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, find: str, put: str, told: str
) -> None:
    """Workers whose script for settling is wrong in one line: LEDGER, and the complaint names what is wrong."""
    monkeypatch.setattr(chaos_, "LAST_VERDICTS_S", 1.0)
    worker = tmp_path / "broken_worker.py"
    worker.write_text(BROKEN.format(find=find, put=put))
    plan = Plan(frames=1000, faults=0, minutes=1, workers=2, work=(str(worker), "work"))
    outcome = run_chaos(plan, tmp_path, quiet)
    with pytest.raises(LedgerError, match=told):
        judge_outcome(outcome)


def test_command_writes_what_came_out(run_bench: RunBench, tmp_path: Path) -> None:
    """Figures on stdout, the same as JSON with the machine; nothing left behind."""
    here = Path(tempfile.gettempdir())
    before = set(here.glob("aoi-chaos-*"))
    code, out, err = run_bench("chaos", "--frames", 300, "--faults", 0, "--json", tmp_path / "out.json")
    assert code == Exit.OK, err
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["outcome"]["verdicts"] == 300
    assert told["machine"]["threads"] > 0
    for words in ("frames offered", "duplicates", "losses", "looks at the ledger"):
        assert words in out
    assert set(here.glob("aoi-chaos-*")) <= before


def test_time_that_runs_out_is_told_and_everything_kept(run_bench: RunBench) -> None:
    """Nothing is lost, but the run is not what was asked for: MISSED, and where the logs are."""
    code, _, err = run_bench("chaos", "--frames", 100_000, "--minutes", 0.01)
    assert code == Exit.MISSED
    assert "not done after 0.0 min" in err
    folder = Path(err.rsplit(maxsplit=1)[-1])
    assert (folder / "redis" / "redis.log").is_file()
    shutil.rmtree(folder)


def test_process_that_ends_without_a_fault_is_told(tmp_path: Path) -> None:
    """It is started again, as a supervisor would, but not in silence; the one that is done is left alone."""
    failing = Kept("worker3", lambda _: ["-c", "raise SystemExit(6)"], tmp_path, lambda: 0.0)
    done = Kept("producer1", lambda _: ["-c", ""], tmp_path, lambda: 0.0)

    def ticked() -> bool:
        failing.tick(time.monotonic())
        done.tick(time.monotonic())
        return failing.life > 1 and done.done

    wait_until(ticked)
    failing.end()
    assert failing.ended_by_itself["worker with code 6"] >= 1
    assert (done.life, done.ended_by_itself.total()) == (1, 0)


def test_disk_that_is_full(tmp_path: Path) -> None:
    """The fault is real: with `everysec` Redis refuses writes until there is room, with `always` it ends."""
    for fsync in ("everysec", "always"):
        server = Server(tmp_path / fsync, fsync)
        server.start()
        try:
            server.wait_until_up()
            server.fill_disk()
            server.ask("SET", "a", "1")
            wait_until(lambda s=server: s.ask("SET", "a", "2").startswith("-MISCONF") or not s.pid)  # type: ignore[misc]
            assert bool(server.pid) is (fsync == "everysec")
            server.free_disk()
            if fsync == "everysec":
                wait_until(lambda s=server: s.ask("SET", "a", "3").startswith("+OK"))  # type: ignore[misc]
        finally:
            server.end()


# ------------------------------------------------------------------ who counts


def verdict(content: Content, number: int, said: tuple[str, str] | None = None, session: str = SESSION) -> Verdict:
    """What the line should say of this frame, or something else."""
    (frame,) = [f for f, _ in zip(content.from_number(number), range(1), strict=False)]
    judgement, reason = said or KINDS[content.kind(number)]
    return Verdict(frame=replace(frame, session=session), judgement=judgement, reason=reason)  # type: ignore[arg-type]


def test_tally_counts_frame_by_frame() -> None:
    """A second verdict, one that is missing, one of a frame nobody offered, one that is not right: each is told."""
    content = Content("p", seed=1, frames=50, deadly=1)
    tally = Tally([content])
    for number in range(49):
        tally.add(verdict(content, number))
    assert (tally.duplicates, tally.wrong, tally.strangers, tally.innocent, tally.examples) == (0, 0, 0, 0, [])
    assert tally.judgements["UNINSPECTED: poison"] == 1
    assert tally.missing() == ["p 49"]
    tally.add(verdict(content, 7))
    tally.add(verdict(content, 49, ("NG", "scratch") if content.kind(49) == "good" else ("OK", "")))
    tally.add(verdict(content, 0, session="other"))
    assert (tally.duplicates, tally.wrong, tally.strangers, tally.missing()) == (1, 1, 1, [])
    assert "p-chaos-7 has verdict number 2" in tally.examples[0]


def test_frame_in_the_hands_of_too_many_killed_workers_is_innocent_poison() -> None:
    """Its verdict is one, and right by the contract; it is counted by itself."""
    content = Content("p", seed=1, frames=50)
    tally = Tally([content])
    tally.add(verdict(content, 0, ("UNINSPECTED", "poison")))
    assert (tally.innocent, tally.wrong) == (1, 0)


def audit(offered: int, settled: int, outstanding: int, gaps: tuple[tuple[str, int, int], ...] = ()) -> Audit:
    return Audit(outstanding, 0, {"p": SourceCount(offered, {"OK": settled})}, {}, gaps)


def test_books_must_balance_at_every_look_and_never_go_back() -> None:
    """One look that does not balance, one that lost what was counted, one with frames passed over."""
    books = Books()
    for look in (audit(0, 0, 0), audit(10, 3, 7), audit(10, 10, 0)):
        books.look(look)
    assert books.violations == []
    for look, told in (
        (audit(12, 10, 1), "does not balance"),
        (audit(11, 10, 1), "went from (12, 10) back to (11, 10)"),
        (audit(13, 10, 3, (("p-chaos", 11, 11),)), "passed over"),
    ):
        books.look(look)
        assert told in books.violations[-1]


def outcome(**changes: object) -> Outcome:
    facts: dict[str, object] = {
        "plan": Plan(frames=100, faults=3),
        "seconds": 60.0,
        "offered": 100,
        "verdicts": 100,
        "judgements": {"OK": 100},
        "faults": {"kill -9 worker": 3},
        **dict.fromkeys(("duplicates", "losses", "wrong", "innocent", "late", "audits", "behind", "starts"), 0),
        "complete": True,
        "broken": [],
        "ended": [],
    }
    return Outcome(**{**facts, **changes})  # type: ignore[arg-type]


def test_broken_promise_weighs_more_than_a_missed_target() -> None:
    """LEDGER when anything is wrong with the verdicts, MISSED when they are right but the run is not complete."""
    judge_outcome(outcome())
    with pytest.raises(LedgerError, match="1 frames lost"):
        judge_outcome(outcome(losses=1, broken=["no verdict: p 1"], complete=False))
    with pytest.raises(MissedError, match="2 of 3 faults"):
        judge_outcome(outcome(faults={"kill -9 worker": 2}))
    with pytest.raises(MissedError, match="ended without a fault: worker with code 5, 1 times"):
        judge_outcome(outcome(ended=["worker with code 5, 1 times"]))
    with pytest.raises(MissedError, match="fell 300,000 verdicts behind"):
        judge_outcome(outcome(behind=300_000, complete=False))


# ------------------------------------------------------------------ what they are shown


def test_content_is_a_pure_function_of_seed_and_number() -> None:
    """The same frames from any number on, all kinds among them, each with the judgement it must get."""
    content = Content("p", seed=3, frames=20_000, deadly=2)
    kinds = [content.kind(n) for n in range(content.frames)]
    assert kinds == [Content("p", seed=3, frames=20_000, deadly=2).kind(n) for n in range(content.frames)]
    assert set(kinds) == set(KINDS)
    assert kinds.count("deadly") == 2
    assert 0.08 < kinds.count("bright") / len(kinds) < 0.12
    late = list(content.from_number(19_990))
    assert [frame.sequence for frame in late] == list(range(19_990, 20_000))
    assert {len(frame.payload()) for frame in content.from_number(0)} == {256, 7}


# ------------------------------------------------------------------ the soak


def test_slope_is_found_and_noise_is_none() -> None:
    """A growth of 36 units per hour under noise lies in its interval; noise alone has 0 in it."""
    rng, seconds = np.random.default_rng(0), np.arange(0, 3600, 10.0)
    noise = rng.normal(0, 2, len(seconds))
    growing, flat = slope_of(seconds, 100 + seconds / 100 + noise), slope_of(seconds, 100 + noise)
    assert growing is not None
    assert flat is not None
    assert 0 < growing.low < 36 < growing.high < 40
    assert flat.low < 0 < flat.high
    assert slope_of(seconds[:9], noise[:9]) is None


def test_samples_that_resemble_their_neighbours_are_worth_less() -> None:
    """A random walk seems to have a slope; the interval is wide enough to say that it has none. Mostly: 95 %."""
    rng, seconds = np.random.default_rng(1), np.arange(120) * 5.0
    held = 0
    for _ in range(200):
        values = np.zeros(120)
        for i in range(1, 120):
            values[i] = 0.8 * values[i - 1] + rng.normal()
        slope = slope_of(seconds, values)
        assert slope is not None
        held += slope.low <= 0 <= slope.high
        assert slope.independent < 60
    assert held > 180
    constant = slope_of(seconds, [5.0] * 120)
    assert constant is not None
    assert (constant.per_hour, constant.low, constant.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_quantiles_of_student() -> None:
    """As tabulated, within one per cent."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042, 1000: 1.962}
    assert [student_t(v) for v in table] == pytest.approx(list(table.values()), rel=0.01)


def test_only_what_certainly_drifts_beyond_its_margin_fails() -> None:
    """The whole interval must lie beyond the margin; memory up, speed down."""
    plan = SoakPlan(recipe_name="panel", recipe=load_recipe("panel"), pictures=Pictures(), minutes=60)

    def grows(name: str, low: float, high: float) -> list[str]:
        slopes = {name: Slope((low + high) / 2, low, high, 100.0, 50, 50.0), "redis used": None}
        return Soaked(
            plan=plan, capacity=1, rate=1, frames=1, warmup_s=1, samples={}, slopes=slopes
        ).grows  # fmt: skip

    assert grows("worker RSS", 11, 30) == ["worker RSS +20.50 MiB/h"]
    assert grows("worker RSS", 9, 300) == []
    assert grows("frames/s", -30, -6) == ["frames/s -18.00 %/h"]
    assert grows("frames/s", -30, -4) == []
    assert grows("frames/s", 11, 30) == []


def test_soak_of_a_few_seconds(run_bench: RunBench, tmp_path: Path) -> None:
    """Real processes under a steady load: figures on stdout, samples and slopes as JSON with the machine, a plot."""
    pytest.importorskip("matplotlib", reason="the plot needs the extra plots")
    recipe = tmp_path / "recipe.toml"
    stage = 'file = "net.fake"\nclasses = ["good", "scratch"]\n'
    recipe.write_text(f'name = "quick"\n[classifier]\n{stage}[segmenter]\n{stage}[batching]\nengine = "fake"\n')
    (tmp_path / "net.fake").write_text("{}")
    margins = ("--memory-margin", 1e9, "--speed-margin", 1e9)
    words = ("--minutes", 0.08, "--every-s", 0.2, "--size", "64x64", "--load", 30, "--out", tmp_path / "out")
    code, out, err = run_bench("soak", "--recipe", recipe, *words, *margins)
    assert code == Exit.OK, err
    (file,) = (tmp_path / "out").glob("soak-quick-fake-*.json")
    told = json.loads(file.read_text())
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert told["machine"]["threads"] > 0
    assert {"worker RSS", "producer RSS", "redis RSS", "redis used", "frames/s"} <= told["samples"].keys()
    assert told["slopes_per_hour"]["worker RSS"]["samples"] > 10
    assert min(told["samples"]["worker RSS"]) > 10
    assert told["frames"] == round(told["rate_frames_per_s"] * 0.08 * 60)
    assert "worker RSS" in out
