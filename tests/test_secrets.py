"""A password in a stream's or camera's address is never shown: not in a log, an error, a table, a report or `ps`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from conftest import make_frame, wait_until
from redis_nodes import Node, free_port

from bench.children import Child
from pipeline.errors import Exit, StreamError
from pipeline.redis_url import parse_redis_url
from pipeline.stream import list_lines, open_stream

SECRET = "s3cret-Pa55word"
AOI = (sys.executable, "-m", "pipeline.cli")
ASKING: Mapping[str, tuple[str, ...]] = {
    "status": ("status",),
    "audit": ("audit", "--json"),
    "results": ("results", "--limit", "1"),
    "doctor": ("doctor", "--json"),
}
EVERY: Mapping[str, tuple[str, ...]] = {
    **ASKING,
    "produce": ("produce", "panel:", "--frames", "1", "--size", "64x64"),
    "bench": ("bench", "single", "--seconds", "0.1", "--engine", "fake"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A Redis that wants a password."""
    with Node(tmp_path_factory.mktemp("server"), ["--requirepass", SECRET]) as node:
        yield node


def url_of(node: Node, password: str = SECRET) -> str:
    return f"redis://default:{password}@{node.address}"


def run(*words: str, url: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """An `aoi` command at its most talkative; the URL by environment."""
    given = {"AOI_URL": url} if url else {}
    command = [*AOI, "-vv", *words]
    env = {**os.environ, **given}
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=env, cwd=cwd)


def silent(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert SECRET not in done.stdout
    assert SECRET not in done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("name", ["status", "audit", "produce"])
def test_right_server(server: Node, name: str) -> None:
    """It works, and at the most talkative says nothing of how."""
    done = silent(run(*EVERY[name], url=url_of(server)))
    assert done.returncode == Exit.OK, done.stderr


@pytest.mark.parametrize("name", EVERY)
def test_wrong_password(server: Node, name: str, tmp_path: Path) -> None:
    """The server's refusal is told, without what was refused."""
    done = silent(run(*EVERY[name], url=url_of(server, SECRET + "x"), cwd=tmp_path))
    assert "check user and password" in done.stdout + done.stderr
    assert done.returncode in (Exit.STREAM, Exit.UNREADY)


@pytest.mark.parametrize("name", ["status", "audit", "bench"])
def test_nobody_there(name: str, tmp_path: Path) -> None:
    """The host is told, without the user's password."""
    url = f"redis://default:{SECRET}@127.0.0.1:{free_port()}"
    done = silent(run(*EVERY[name], url=url, cwd=tmp_path))
    assert "cannot be reached" in done.stderr
    assert done.returncode == Exit.STREAM


SPOILT = [
    f"redis://u:{SECRET}/x@h",
    f"redis://u:x/{SECRET}@h",
    f"redis://u:{SECRET}?x@h",
    f"redis://u:x?{SECRET}@h",
    f"redis://u:x#{SECRET}@h",
    f"redis://u:[{SECRET}@h",
    f"redis://u:x@y/{SECRET}@h",
    f"redis://u:℀{SECRET}@h",
    f"redis://u:{SECRET}@h:port",
    f"redis://{SECRET}@h:port",
    f"redis://h?password={SECRET}",
    f"redis+sentinel://h/s?sentinel_password={SECRET}&db=x",
    f"redis+cluster://u:{SECRET}@a,b/7",
    f"http://u:{SECRET}@h",
    f"REDIS://u:{SECRET}@h:x",
    f"unix://u:{SECRET}@h/path",
    f"u:{SECRET}@h",
]


@pytest.mark.parametrize("url", SPOILT)
def test_url_that_falls_apart_in_the_wrong_places(url: str, line: str) -> None:
    """Signs that should have been encoded put parts of the password where a host or an option is expected."""
    for ask in (lambda: open_stream(url, line), lambda: list_lines(url), lambda: parse_redis_url(url)):
        with pytest.raises(StreamError) as refused:
            ask()
        assert SECRET not in str(refused.value)
        assert SECRET not in repr(refused.value.__cause__)


@pytest.mark.parametrize(
    "words",
    [
        ("status", f"redis://u:{SECRET}@h"),
        ("status", "--line", f"redis://u:{SECRET}@h", "--url", "redis://h"),
        ("produce", f"redis://u:{SECRET}@h"),
        ("produce", f"rtsp://admin:{SECRET}@127.0.0.1:9/ch1", "--frames", f"redis://u:{SECRET}@h"),
        ("work", "--recipe", f"redis://u:{SECRET}@h"),
        ("status", "--url", f"redis://u:{SECRET}@h:port"),
    ],
)
def test_address_in_the_wrong_place(words: tuple[str, ...]) -> None:
    """A message that quotes what was typed leaves the password out."""
    assert silent(run(*words)).returncode not in (Exit.OK, Exit.BUG)


@pytest.mark.parametrize(
    ("broken", "words", "start"),
    [
        ("ledgers.list_lines", ["aoi", "status", "--url", "redis://h"], "main"),
        ("cli.bench.commands['compare'].callback", ["bench", "compare", "a", "b"], "bench_main"),
    ],
)
def test_bug_report_holds_no_password(broken: str, words: list[str], start: str) -> None:
    """Even where something breaks that we did not foresee, in the traceback with its causes."""
    code = (
        "import sys, pipeline.cli as cli, pipeline.ledger_commands as ledgers\n"
        "def fail(*_, **__): raise KeyError('redis://u:' + sys.argv[-1] + '@h') from ValueError('rtsp://u:x@h')\n"
        f"{broken} = lambda *_, **__: fail(sys.argv.append({SECRET!r}))\n"
        f"sys.argv = {words}\n"
        f"cli.{start}()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == Exit.BUG
    assert "redis://u:***@h" in done.stderr
    assert SECRET not in done.stderr
    assert "rtsp://u:***@h" in done.stderr


def test_children_of_a_bench_have_no_password_among_their_arguments(server: Node, tmp_path: Path) -> None:
    """`ps` shows them to every user of the machine; and the report that stays says nothing of the URL."""
    words = [
        *AOI,
        "bench",
        "single",
        "--seconds",
        "0.5",
        "--rate",
        "100",
        "--engine",
        "fake",
        "--out",
        str(tmp_path / "out"),
    ]
    env = {**os.environ, "AOI_URL": url_of(server)}
    seen: set[str] = set()
    bench = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    watched = psutil.Process(bench.pid)

    def over() -> bool:
        for child in watched.children(recursive=True) if bench.poll() is None else ():
            try:
                seen.add(" ".join(child.cmdline()))
            except psutil.Error:
                continue
        return bench.poll() is not None

    try:
        wait_until(over, 60)
    finally:
        bench.kill()
        told = bench.communicate()[0]
    assert bench.returncode == Exit.OK, told
    assert any("work" in words for words in seen), seen
    assert any("bench.load" in words for words in seen), seen
    reports = [path.read_bytes() for path in (tmp_path / "out").iterdir()]
    assert reports
    assert SECRET not in told + " ".join(seen)
    assert not any(SECRET.encode() in report for report in reports)


def test_child_has_its_environment() -> None:
    """What is secret goes to a child by environment."""
    code = "import os; print(os.environ['AOI_URL'])"
    with Child("worker", ["-c", code], {"AOI_URL": "redis://h"}) as child:
        assert child.hear() == "redis://h"


def test_verdicts_and_ledger_know_no_url(server: Node, line: str) -> None:
    """What travels and what is kept names lines, sources and workers only."""
    stream = open_stream(url_of(server), line, "w")
    stream.offer([make_frame(0)])
    (delivery,) = stream.take(1)
    assert SECRET.encode() not in delivery.header
    assert SECRET not in json.dumps(repr(stream.audit()))
    assert SECRET not in repr(parse_redis_url(url_of(server)))
