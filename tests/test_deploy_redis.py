"""deploy/redis on a real server: it starts as configured, and each user can do its work and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import redis
from conftest import make_frame, wait_until
from test_worker import write_recipe

from pipeline.errors import StreamError
from pipeline.messages import Verdict
from pipeline.redis_binary import candidates, find_server
from pipeline.stream import Delivery, Limits, list_lines, open_stream

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
CONF, TLS = DEPLOY / "redis/redis.conf", DEPLOY / "redis/tls.conf"
ROLES = ("producer", "worker", "viewer", "admin")
LINE = "press4"
# CLIENT SETINFO, which tells the client library's version: Redis 7.0 knows it not, so no user file that names it loads
ALLOWED_TO_FAIL = {f"aoi-{role} {words}" for role in ROLES for words in ("client|setinfo", "client")}


@dataclass
class Server:
    """A Redis run with deploy/redis/redis.conf; only the paths are others."""

    folder: Path
    process: subprocess.Popen[bytes]
    environment: Mapping[str, Mapping[str, str]]  # role → what its file says

    def url(self, role: str) -> str:
        return self.environment[role]["AOI_URL"]

    def client(self, role: str = "admin") -> redis.Redis:
        return redis.Redis.from_url(self.url(role), decode_responses=True)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def denied(self) -> set[str]:
        """Whom the server refused what, since it was asked last; `*` where it was for no command."""
        with self.client() as admin:
            found = {f"{row['username']} {row['object']}" for row in admin.acl_log()}
            admin.execute_command("ACL LOG RESET")
        return found


def make_passwords(folder: Path, *address: str) -> dict[str, dict[str, str]]:
    """Run the script; what its files say by role."""
    subprocess.run([DEPLOY / "redis/make-passwords", folder, *address], check=True, capture_output=True, timeout=60)
    files = {role: (folder / f"{role}.env").read_text() for role in ROLES}
    return {role: dict(row.split("=", 1) for row in text.splitlines()) for role, text in files.items()}


def start(folder: Path, *options: str, binary: Path | None = None, conf: Path = CONF) -> subprocess.Popen[bytes]:
    """A server with a configuration of ours and other paths; its log is `folder`/log."""
    words = [str(binary or find_server()[0]), str(conf), "--dir", str(folder), "--aclfile", str(folder / "users.acl")]
    words += ["--unixsocket", str(folder / "redis.sock"), *options]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(words, stdout=log, stderr=log)


def is_up(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server as it is deployed, with new passwords."""
    folder = tmp_path_factory.mktemp("aoi")
    environment = make_passwords(folder, f"unix://{folder}/redis.sock")
    started = Server(folder, start(folder), environment)
    try:
        wait_until(lambda: is_up(started.url("admin")) or started.process.poll() is not None)
        assert started.process.poll() is None, started.log()
        yield started
    finally:
        started.process.terminate()
        started.process.wait(30)


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> None:
    if "server" in request.fixturenames:
        server: Server = request.getfixturevalue("server")
        with server.client() as admin:
            admin.flushall()
        server.denied()


def take_one(server: Server) -> tuple[Delivery, Verdict]:
    """A frame offered and taken, and a verdict for it."""
    open_stream(server.url("producer"), LINE).offer([make_frame(0)])
    (delivery,) = open_stream(server.url("worker"), LINE, "w").take(1)
    return delivery, Verdict(frame=delivery.frame.without_pixels(), judgement="OK", received_ns=delivery.received_ns)


# -------------------------------------------------------------- the configuration


def test_server_runs_as_configured(server: Server) -> None:
    """Every directive of redis.conf is in force, none is misspelt, and the log has no warning about one."""
    with server.client() as admin:
        inside = admin.config_get("*")
    told = {name: value for name, value in directives(CONF) if name not in ("dir", "aclfile", "unixsocket")}
    for name, value in told.items():
        if name not in ("save", "client-output-buffer-limit", "bind"):
            assert inside[name] in (value, str(in_bytes(value))), name
    assert (inside["save"], inside["bind"]) == ("", told["bind"])
    assert "normal 1073741824 268435456 60" in inside["client-output-buffer-limit"]
    assert not re.search(r"FATAL|Bad directive|deprecated", server.log())


def directives(path: Path) -> list[tuple[str, str]]:
    rows = [row.split(maxsplit=1) for row in path.read_text().splitlines() if row and not row.startswith("#")]
    return [(name, value.strip('"')) for name, value in rows]


def in_bytes(value: str) -> str | int:
    told = re.fullmatch(r"(\d+)([kmg]b)", value)
    return int(told[1]) << {"kb": 10, "mb": 20, "gb": 30}[told[2]] if told else value


def test_the_directives_that_the_promise_rests_on() -> None:
    """Nothing is evicted, everything is written down, nobody comes in without a user."""
    told = dict(directives(CONF))
    wanted = {"maxmemory-policy": "noeviction", "appendonly": "yes", "protected-mode": "yes", "port": "0"}
    assert {name: told[name] for name in wanted} == wanted
    assert "rename-command" not in told
    assert told["aclfile"]


def test_memory_in_the_configuration_is_what_its_formula_says() -> None:
    """One line at the default budget with two workers fits into maxmemory, and maxmemory is not twice that."""
    limits, mib = Limits(), 1 << 20
    needs = (limits.max_bytes + 2 * 2048 * limits.keep_verdicts + 2 * 64 * mib) * 1.3
    has = in_bytes(dict(directives(CONF))["maxmemory"])
    assert isinstance(has, int)
    assert needs <= has * 1.01 < 2 * needs


@pytest.mark.parametrize("sync", ["everysec", "always"])
def test_killed_server_comes_back_with_every_frame_on_file(tmp_path: Path, sync: str) -> None:
    """kill -9: with `always` nothing that was answered is gone, with `everysec` nothing that had left its buffer."""
    environment = make_passwords(tmp_path, f"unix://{tmp_path}/redis.sock")
    for expected in (0, 5):
        process = start(tmp_path, "--appendfsync", sync)
        wait_until(lambda: is_up(environment["admin"]["AOI_URL"]))
        stream = open_stream(environment["producer"]["AOI_URL"], LINE)
        assert stream.audit().outstanding == expected
        stream.offer([make_frame(i) for i in range(5)])
        stream.close()
        if sync == "everysec":
            wait_until(lambda: not unwritten(environment["admin"]["AOI_URL"]))
        process.send_signal(signal.SIGKILL)
        process.wait()


def unwritten(url: str) -> int:
    """Bytes that the server has answered for and not yet handed to the kernel, because a sync is under way."""
    with redis.Redis.from_url(url) as admin:
        return int(admin.info("persistence")["aof_buffer_length"])


def test_full_memory_refuses_offers_and_loses_nothing(server: Server) -> None:
    """At maxmemory an offer is told to wait; frames that are there can still be judged."""
    producer = open_stream(server.url("producer"), LINE)
    producer.offer([make_frame(0)])
    with server.client() as admin:
        admin.config_set("maxmemory", "1kb")
        try:
            with pytest.raises(StreamError, match=r"cannot take this now.*(OOM|maxmemory)"):
                producer.offer([make_frame(1)])
        finally:
            admin.config_set("maxmemory", dict(directives(CONF))["maxmemory"])
    assert producer.offer([make_frame(1)]) == 1
    assert producer.audit().outstanding == 2
    assert producer.audit().holds


# -------------------------------------------------------------- the users


def test_each_user_can_do_its_work(server: Server) -> None:
    """Offer, take, settle, reclaim, expire, audit, read and list, each by its role: the server refuses nothing."""
    delivery, verdict = take_one(server)
    worker = open_stream(server.url("worker"), LINE, "w")
    worker.take(1)
    worker.reclaim(1)
    assert list(map(bool, worker.settle([(delivery, verdict)]))) == [True]
    worker.expire(verdict)
    assert worker.audit().settled == 1
    worker.close()
    producer = open_stream(server.url("producer"), LINE, limits=Limits(max_frames=1))
    producer.offer([make_frame(i) for i in (3, 4)], "shed-oldest")
    producer.expire(verdict)
    assert producer.audit().holds
    viewer = open_stream(server.url("viewer"), LINE)
    assert viewer.audit().offered == 3
    assert len(viewer.read("0", 10)) == 2
    assert viewer.newest() != "0"
    assert list_lines(server.url("viewer")) == [LINE]
    assert server.denied() <= ALLOWED_TO_FAIL


def test_a_frame_expires_by_either_role(server: Server) -> None:
    """With all workers dead a producer ends overdue frames; one that a worker holds is amended later."""
    for role, sequence in (("producer", 0), ("worker", 1)):
        producer = open_stream(server.url("producer"), LINE)
        overdue = replace(make_frame(sequence), deadline_ns=1_000_000)
        producer.offer([overdue])
        worker = open_stream(server.url("worker"), LINE, "w")
        (delivery,) = worker.take(1)
        late = Verdict(frame=delivery.frame.without_pixels(), judgement="OK", received_ns=delivery.received_ns)
        fail_safe = Verdict(frame=delivery.frame.without_pixels(), judgement="REVIEW", reason="deadline")
        open_stream(server.url(role), LINE, "w" if role == "worker" else "").expire(fail_safe)
        worker.settle([(delivery, late)])
    audit = producer.audit()
    assert (audit.judged["REVIEW"], audit.outstanding, dict(audit.amended)) == (2, 0, {"OK": 2})


def test_whole_line_runs_with_a_user_for_each_part(server: Server, tmp_path: Path) -> None:
    """`aoi work`, `produce`, `audit`, `status` and `results` as daemons run them: settings from the written files."""
    write_recipe(tmp_path)

    def aoi(role: str, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipeline.cli", *words]
        env = {**os.environ, **server.environment[role], "AOI_LINE": LINE, "AOI_RECIPE": str(tmp_path)}
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    worker = aoi("worker", "work", "--metrics", "127.0.0.1:0")
    try:
        made = aoi("producer", "produce", "panel:", "--frames", "20", "--size", "64x64", "--deadline-ms", "60000")
        _, said = made.communicate(timeout=60)
        assert made.returncode == 0, said
        viewer = open_stream(server.url("viewer"), LINE)
        wait_until(lambda: viewer.audit().settled == 20)
        for words in (["audit"], ["status"], ["results"], ["results", "--amendments"]):
            looked = aoi("viewer", *words)
            out, said = looked.communicate(timeout=60)
            assert looked.returncode == 0, said
            assert out.count("\n") == 20 or words != ["results"]
        worker.terminate()
        _, said = worker.communicate(timeout=60)
        assert worker.returncode == 0, said
    finally:
        worker.kill()
        worker.communicate()
    assert server.denied() <= ALLOWED_TO_FAIL


REFUSED: dict[str, tuple[str, Callable[[Server, Delivery, Verdict], object]]] = {
    "worker offers": ("worker", lambda s, d, v: open_stream(s.url("worker"), LINE, "w").offer([make_frame(9)])),
    "producer takes": ("producer", lambda s, d, v: open_stream(s.url("producer"), LINE, "p").take(1)),
    "producer reclaims": ("producer", lambda s, d, v: open_stream(s.url("producer"), LINE, "p").reclaim(1)),
    "viewer offers": ("viewer", lambda s, d, v: open_stream(s.url("viewer"), LINE).offer([make_frame(9)])),
    "viewer takes": ("viewer", lambda s, d, v: open_stream(s.url("viewer"), LINE, "w").take(1)),
    "viewer reclaims": ("viewer", lambda s, d, v: open_stream(s.url("viewer"), LINE, "w").reclaim(1)),
    "viewer settles": ("viewer", lambda s, d, v: open_stream(s.url("viewer"), LINE, "w").settle([(d, v)])),
    "viewer expires": ("viewer", lambda s, d, v: open_stream(s.url("viewer"), LINE).expire(v)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_user_must_not_do_changes_nothing(server: Server, what: str) -> None:
    """Refused with a line that says so, and before the first write: no half of a script is ever done."""
    role, attempt = REFUSED[what]
    delivery, verdict = take_one(server)
    with server.client() as admin:
        before = contents(admin)
        with pytest.raises(StreamError, match=r"does not let this user|refuses this user"):
            attempt(server, delivery, verdict)
        assert contents(admin) == before
    assert any(row.startswith(f"aoi-{role} ") for row in server.denied())


def contents(admin: redis.Redis) -> dict[str, object]:
    """Every key as the server would dump it, but for the signs of life, which fade by themselves."""
    names = [name for name in admin.scan_iter() if ":alive:" not in name]
    return {name: admin.execute_command("DUMP", name, NEVER_DECODE=True) for name in names}


@pytest.mark.parametrize("role", ["producer", "worker", "viewer"])
@pytest.mark.parametrize(
    "words",
    ["CONFIG GET *", "FLUSHALL", "SHUTDOWN", "KEYS *", "ACL LIST", "CLIENT LIST", "CLIENT KILL ID 1",
     "SET elsewhere 1", "XADD elsewhere * a b", "DEL aoi:{press4}:frames:x elsewhere", "EVAL return 1 0", "MONITOR",
     "SCRIPT FLUSH", "SUBSCRIBE x", "REPLICAOF NO ONE", "SAVE", "BGREWRITEAOF"],
)  # fmt: skip
def test_no_role_reaches_the_server_itself(server: Server, role: str, words: str) -> None:
    """Neither its settings nor its users, other clients, keys of others, or its data as a whole."""
    command = ["EVAL", "return 1", "0"] if words.startswith("EVAL") else words.split()
    with server.client(role) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


def test_users_have_the_commands_of_their_scripts_and_no_others(server: Server) -> None:
    """What users.acl grants is what the scripts and the client's own calls need: neither less nor more."""
    lua = {path.stem: commands_of(path) for path in (DEPLOY.parent / "pipeline").glob("*.lua")}
    client = {"ping", "info", "client|setname", "script|load", "evalsha", "cluster|slots"}
    needs = {
        "producer": client | {"wait"} | lua["offer"] | lua["expire"] | lua["audit"],
        "worker": client | {"wait", "del", "set", "xgroup", "xreadgroup"}
        | lua["settle"] | lua["reclaim"] | lua["expire"] | lua["audit"],
        "viewer": client | {"scan", "xread", "xrevrange"} | lua["audit"],
    }  # fmt: skip
    for role, needed in needs.items():
        (row,) = re.findall(rf"^user aoi-{role} .*", (DEPLOY / "redis/users.acl").read_text(), re.MULTILINE)
        assert set(re.findall(r"\+(\S+)", row)) == needed, role
        assert re.findall(r"[~%&]\S+", row) == ["~aoi:*"], "keys of lines, and no channels"


def commands_of(script: Path) -> set[str]:
    return {name.lower() for name in re.findall(r"redis\.p?call\('(\w+)'", script.read_text())}


def test_nobody_comes_in_without_a_user(server: Server) -> None:
    """The default user is off, also for whoever gives a password."""
    path = server.folder / "redis.sock"
    for user in ("", ":x@", "aoi-worker@"):
        with redis.Redis.from_url(f"unix://{user}{path}") as client, pytest.raises(redis.AuthenticationError):
            client.ping()
    with pytest.raises(StreamError, match="refuses this user"):
        open_stream(f"unix://aoi-worker:wrong@{path}", LINE).audit()


def test_template_of_users_is_refused_as_it_stands(tmp_path: Path) -> None:
    """Whoever forgets make-passwords has no server rather than an open one."""
    for text in (users := (DEPLOY / "redis/users.acl").read_text(), re.sub("^#.*\n", "", users, flags=re.MULTILINE)):
        (tmp_path / "users.acl").write_text(text)
        process = start(tmp_path)
        assert process.wait(30) != 0
        assert "users.acl" in (tmp_path / "log").read_text()
    (tmp_path / "users.acl").unlink()
    assert start(tmp_path).wait(30) != 0


# -------------------------------------------------------------- the scripts


def test_passwords_are_new_secret_and_never_overwritten(tmp_path: Path) -> None:
    """Two runs share nothing, clients' files are their owner's alone, and the server's holds no password."""
    one, two = (make_passwords(tmp_path / name) for name in ("one", "two"))
    passwords = [re.search(r":([0-9a-f]{64})@", told[role]["AOI_URL"]) for told in (one, two) for role in ROLES]
    assert len({found[1] for found in passwords if found}) == 8
    acl = (tmp_path / "one/users.acl").read_text()
    assert not any(found[1] in acl for found in passwords if found)
    for role in ROLES:
        assert (tmp_path / f"one/{role}.env").stat().st_mode & 0o777 == 0o600
    again = subprocess.run(
        [DEPLOY / "redis/make-passwords", tmp_path / "one"], capture_output=True, text=True, check=False
    )
    assert again.returncode == 1
    assert "holds passwords already" in again.stderr
    assert (tmp_path / "one/users.acl").read_text() == acl


@pytest.mark.parametrize("address", ["http://x", "redis://", "redis://user:pw@host:1", "/run/redis.sock"])
def test_passwords_for_an_address_that_is_none(tmp_path: Path, address: str) -> None:
    """Refused with what would be right, and nothing written."""
    command = [DEPLOY / "redis/make-passwords", tmp_path / "new", address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "address" in done.stderr or "use unix://" in done.stderr
    assert not (tmp_path / "new").exists()


def make_certificates(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    command = [DEPLOY / "redis/make-certificates", folder, *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def openssl(*words: object) -> str:
    return subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=True).stdout


needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed on this machine")


@needs_openssl
def test_certificates_are_of_one_authority_and_name_the_server(tmp_path: Path) -> None:
    """Run again they are renewed by the same authority; names and addresses stand in them as what they are."""
    done = make_certificates(tmp_path, "line-pc", "10.0.0.7", "::1", "line-pc.plant.local")
    assert done.returncode == 0, done.stderr
    first = openssl("x509", "-in", tmp_path / "ca.crt", "-noout", "-fingerprint")
    serial = openssl("x509", "-in", tmp_path / "redis.crt", "-noout", "-serial")
    for _ in range(2):
        openssl("verify", "-CAfile", tmp_path / "ca.crt", "-purpose", "sslserver", tmp_path / "redis.crt")
        names = openssl("x509", "-in", tmp_path / "redis.crt", "-noout", "-ext", "subjectAltName")
        for name in ("DNS:line-pc", "IP Address:10.0.0.7", "IP Address:0:0:0:0:0:0:0:1", "DNS:line-pc.plant.local"):
            assert name in names
        make_certificates(tmp_path, "line-pc", "10.0.0.7", "::1", "line-pc.plant.local")
    assert openssl("x509", "-in", tmp_path / "ca.crt", "-noout", "-fingerprint") == first
    assert openssl("x509", "-in", tmp_path / "redis.crt", "-noout", "-serial") != serial
    for name in ("ca.key", "redis.key"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


@needs_openssl
def test_certificates_for_a_name_that_is_none(tmp_path: Path) -> None:
    """Nothing that openssl would take for a setting of its own gets into a certificate."""
    for names in ([], ["x,DNS:evil"], ["a b"]):
        assert make_certificates(tmp_path / "new", *names).returncode == 2
    assert not (tmp_path / "new").exists()


def server_with_tls() -> Path | None:
    for binary in candidates():
        done = subprocess.run([binary, "--tls-port", "0", "--port", "x"], capture_output=True, text=True, check=False)
        if "tls-port" not in done.stdout + done.stderr:
            return binary
    return None


@needs_openssl
def test_tls_for_other_machines(tmp_path: Path) -> None:
    """With tls.conf included: clients that know the authority work, others and the open port are refused."""
    if not (binary := server_with_tls()):
        pytest.skip("no Redis server built with TLS on this machine; the embedded one is not")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    make_certificates(tmp_path, "localhost", "127.0.0.1")
    tls = re.sub("/etc/aoi/redis/tls", str(tmp_path), TLS.read_text()).replace("6380", str(port))
    (tmp_path / "tls.conf").write_text(tls)
    text = CONF.read_text().replace("# include /etc/aoi/redis/tls.conf", f"include {tmp_path}/tls.conf")
    (tmp_path / "redis.conf").write_text(text)
    environment = make_passwords(tmp_path, f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path}/ca.crt")
    process = start(tmp_path, binary=binary, conf=tmp_path / "redis.conf")
    try:
        wait_until(lambda: is_up(environment["admin"]["AOI_URL"]) or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "log").read_text()
        stream = open_stream(environment["producer"]["AOI_URL"], LINE)
        assert stream.offer([make_frame(0)]) == 1
        stream.close()
        for url in (f"rediss://localhost:{port}/0", f"redis://localhost:{port}/0"):
            with pytest.raises(StreamError):
                open_stream(url, LINE).audit()
    finally:
        process.terminate()
        process.wait(30)
