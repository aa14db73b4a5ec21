"""deploy/systemd: the units by systemd's own parser and by a strict table, users, settings and command lines."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from aoi_words import check_command, env_file, settings_of

FOLDER = Path(__file__).resolve().parent.parent / "deploy/systemd"
UNITS = sorted(path.name for path in FOLDER.glob("*.service"))
DROP_INS = ("gpu.conf", "backoff.conf")
NEWER = {"RestartSteps", "RestartMaxDelaySec"}  # systemd ≥ 254

# What may stand in our units, and how: systemd.unit(5), .service(5), .exec(5), .kill(5), .resource-control(5).
YES_NO, TIME, SIZE, COUNT = r"yes|no", r"(\d+(min|s)?|infinity)", r"(\d+[KMG]?|infinity)", r"-?\d+"
PATH, WORDS, NAME = r"/\S+", r"\S.*", r"[\w@.%/-]+"
KNOWN = {
    "Unit": {
        "Description": WORDS, "Documentation": r"(https?|file)://\S+", "After": WORDS, "Wants": WORDS,
        "StartLimitIntervalSec": TIME,
    },
    "Service": {
        "Type": "notify|exec", "NotifyAccess": "main", "User": NAME, "Group": NAME, "SupplementaryGroups": WORDS,
        "EnvironmentFile": PATH, "Environment": r"(\w+=\S+ ?)+", "WorkingDirectory": PATH, "ExecStart": r"/\S+( .+)?",
        "Restart": "always|on-failure", "RestartSec": TIME, "RestartSteps": COUNT, "RestartMaxDelaySec": TIME,
        "TimeoutStartSec": TIME, "TimeoutStopSec": TIME, "WatchdogSec": TIME, "KillSignal": "SIGTERM",
        "SuccessExitStatus": COUNT, "StateDirectory": NAME, "StateDirectoryMode": r"0[0-7]{3}",
        "RuntimeDirectory": NAME, "RuntimeDirectoryMode": r"0[0-7]{3}", "UMask": r"0[0-7]{3}",
        "MemoryMax": SIZE, "MemorySwapMax": SIZE, "TasksMax": COUNT, "CPUWeight": COUNT, "OOMScoreAdjust": COUNT,
        "LimitNOFILE": COUNT, "LimitCORE": COUNT, "LimitMEMLOCK": SIZE,
        "NoNewPrivileges": YES_NO, "ProtectSystem": "strict", "ProtectHome": YES_NO, "PrivateTmp": YES_NO,
        "PrivateDevices": YES_NO, "DevicePolicy": "closed", "DeviceAllow": r"char-[\w-]+ rw",
        "ProtectProc": "invisible", "ProtectClock": YES_NO, "ProtectHostname": YES_NO, "ProtectKernelLogs": YES_NO,
        "ProtectKernelModules": YES_NO, "ProtectKernelTunables": YES_NO, "ProtectControlGroups": YES_NO,
        "RestrictAddressFamilies": r"(AF_\w+ ?)+", "RestrictNamespaces": YES_NO, "RestrictRealtime": YES_NO,
        "RestrictSUIDSGID": YES_NO, "LockPersonality": YES_NO, "MemoryDenyWriteExecute": YES_NO,
        "CapabilityBoundingSet": "", "AmbientCapabilities": "", "KeyringMode": "private", "RemoveIPC": YES_NO,
        "SystemCallArchitectures": "native", "SystemCallFilter": r"~?@[\w-]+", "SystemCallErrorNumber": "EPERM",
    },
    "Install": {"WantedBy": r"multi-user\.target"},
}  # fmt: skip


def rows(name: str) -> list[tuple[str, str, str]]:
    """(section, directive, value) in order; fails on a line that is none of these."""
    found, section = [], ""
    for row in (FOLDER / name).read_text().splitlines():
        if told := re.fullmatch(r"\[(\w+)\]", row):
            section = told[1]
        elif row and not row.startswith("#"):
            told = re.fullmatch(r"(\w+)=(.*)", row)
            assert told, f"{name}: {row!r} is no directive"
            found.append((section, told[1], told[2]))
    return found


def values(name: str, directive: str) -> list[str]:
    return [value for _, key, value in rows(name) if key == directive]


@pytest.mark.parametrize("name", [*UNITS, *DROP_INS])
def test_every_directive_is_known_and_well_formed(name: str) -> None:
    """Without systemd at hand: a misspelt name, a wrong section or value is found all the same."""
    for section, directive, value in rows(name):
        assert directive in KNOWN.get(section, {}), f"{name}: {directive} in [{section}]"
        assert re.fullmatch(KNOWN[section][directive], value), f"{name}: {directive}={value}"


def test_the_table_of_directives_is_systemds_own() -> None:
    """What we take for known is what this machine's systemd knows, but for what came after it."""
    if not (binary := shutil.which("systemd", path="/lib/systemd:/usr/lib/systemd")):
        pytest.skip("systemd is not installed on this machine")
    told = subprocess.run([binary, "--dump-configuration-items"], capture_output=True, text=True, check=True).stdout
    sections: dict[str, set[str]] = {}
    for row in told.splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", row):
            section = sections.setdefault(heading[1], set())
        elif "=" in row:
            section.add(row.partition("=")[0])
    for title, directives in KNOWN.items():
        assert set(directives) - NEWER <= sections[title]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as on a line PC, with programs that this machine has in place of those it lacks."""
    for name in UNITS:
        text = (FOLDER / name).read_text().replace("/opt/aoi/bin/aoi", "/bin/true")
        (tmp_path / name).write_text(text.replace("/usr/bin/redis-server", "/bin/true"))
    (tmp_path / "aoi-worker@gpu.service.d").mkdir()
    shutil.copy(FOLDER / "gpu.conf", tmp_path / "aoi-worker@gpu.service.d")
    return tmp_path


def analyze(*words: object) -> subprocess.CompletedProcess[str]:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed on this machine")
    command = ["systemd-analyze", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


INSTANCES = (
    "aoi-redis.service",
    "aoi-worker@line1.service",
    "aoi-worker@gpu.service",
    "aoi-producer@left.service",
    "aoi-gpu-worker@0.service",
)


def test_systemd_reads_the_units_without_a_word(installed: Path) -> None:
    """`systemd-analyze verify` has nothing to say, drop-in for GPUs included; and a misspelt name is told."""
    done = analyze("verify", *(installed / name for name in INSTANCES))
    assert (done.returncode, done.stderr) == (0, "")
    for file, right in (("aoi-worker@.service", "WatchdogSec"), ("aoi-worker@gpu.service.d/gpu.conf", "DevicePolicy")):
        text = (installed / file).read_text()
        (installed / file).write_text(text.replace(f"{right}=", f"{right}s="))
        assert f"{right}s" in analyze("verify", installed / "aoi-worker@gpu.service").stderr


@pytest.mark.parametrize("name", UNITS)
def test_units_are_hardened(installed: Path, name: str) -> None:
    """systemd's own measure of what a broken-in daemon could reach: at most 2 of 10."""
    done = analyze("security", "--offline=true", "--threshold=20", installed / name)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


@pytest.mark.parametrize("name", UNITS)
def test_promises_every_unit_keeps(name: str) -> None:
    """Restarted for ever, drained before killed, limited, without privileges, as a user of its own."""
    facts = {key: value for _, key, value in rows(name)}
    assert facts["Restart"] == ("on-failure" if "producer" in name else "always")
    assert (facts["StartLimitIntervalSec"], facts["NoNewPrivileges"]) == ("0", "yes")
    assert {"TimeoutStopSec", "TasksMax", "LimitNOFILE", "MemorySwapMax", "OOMScoreAdjust"} <= set(facts)
    assert facts["User"] == re.split("[@.]", name)[0].replace("-gpu", "")
    assert facts["WorkingDirectory"] == f"/var/lib/{facts['StateDirectory']}"
    for row in (FOLDER / name).read_text().splitlines():
        assert "password" not in row or row.startswith("#"), row


def test_worker_is_watched_and_drains_longer_than_it_may_take() -> None:
    """Watchdog on, code for machine-made engines allowed, and time to stop above grace and stall together."""
    facts = {key: value for _, key, value in rows("aoi-worker@.service")}
    assert (facts["Type"], facts["WatchdogSec"]) == ("notify", "30")
    grace = check_command(["work"]).params["grace_s"]
    assert int(facts["TimeoutStopSec"]) > grace + 60
    assert "MemoryDenyWriteExecute" not in facts


def test_a_gpu_has_a_worker_of_its_own() -> None:
    """The instance is the GPU's number, the line stands in its settings; all else is the other worker's."""
    _, *words = values("aoi-gpu-worker@.service", "ExecStart")[0].replace("%i", "1").split()
    settings = env_file((FOLDER / "gpu.env.example").read_text())
    assert settings.keys() <= settings_of("work")
    found = check_command(words, {**settings, "AOI_URL": "unix:///run/aoi-redis/redis.sock"}).params
    assert (found["device"], found["line"], found["engine"]) == ("1", "press4", "trt-fp16")
    plain, own = ({key for _, key, _ in rows(name)} for name in ("aoi-worker@.service", "aoi-gpu-worker@.service"))
    assert own - plain == {"DevicePolicy", "DeviceAllow", "LimitMEMLOCK"}
    devices = values("gpu.conf", "DeviceAllow")
    assert set(values("aoi-gpu-worker@.service", "DeviceAllow")) == {each for each in devices if "nvidia" in each}


def test_redis_is_the_last_to_be_killed() -> None:
    """When memory runs out the kernel takes a worker, whose frames are kept, before the source, before Redis."""
    order = [
        int(values(f"{unit}.service", "OOMScoreAdjust")[0]) for unit in ("aoi-redis", "aoi-producer@", "aoi-worker@")
    ]
    assert order == sorted(order)
    assert len(set(order)) == 3


@pytest.mark.parametrize(
    ("unit", "files"),
    [
        ("aoi-worker@.service", ("aoi.env.example", "line.env.example")),
        ("aoi-producer@.service", ("aoi.env.example", "source.env.example")),
    ],
)
def test_command_line_and_settings_are_what_aoi_takes(unit: str, files: tuple[str, ...]) -> None:
    """ExecStart with the settings of its example files parses; each setting is one of that very command."""
    program, *words = values(unit, "ExecStart")[0].replace("%i", "left").split()
    assert program == "/opt/aoi/bin/aoi"
    settings = {}
    for file in files:
        settings |= env_file((FOLDER / file).read_text())
    assert settings.keys() <= settings_of("work", "produce")
    own = {name for name in settings if name.startswith(("AOI_WORK_", "AOI_PRODUCE_"))}
    assert own <= settings_of(words[0])
    found = check_command(words, {**settings, "AOI_URL": "unix:///run/aoi-redis/redis.sock"}).params
    if words[0] == "produce":
        assert (found["source"], found["name"], found["line"]) == ("/srv/aoi/left", "left", "line1")
    else:
        assert (found["recipe"], found["line"]) == ("panel", "left")


def test_settings_files_stand_where_the_units_look() -> None:
    """Each example says in its first line where it goes; the units read exactly these, and the secrets."""
    says = {re.findall(r"/etc/aoi/\S+\.env", path.read_text())[0] for path in FOLDER.glob("*.example")}
    reads = {value for name in UNITS for value in values(name, "EnvironmentFile")}
    generic = {
        "/etc/aoi/lines/%i.env": "/etc/aoi/lines/LINE.env",
        "/etc/aoi/sources/%i.env": "/etc/aoi/sources/NAME.env",
        "/etc/aoi/gpus/%i.env": "/etc/aoi/gpus/N.env",
    }
    secret = {"/etc/aoi/secrets/worker.env", "/etc/aoi/secrets/producer.env"}
    assert {generic.get(value, value) for value in reads} == says | secret
    made = (FOLDER.parent / "redis/make-passwords").read_text()
    assert "for role in producer worker viewer admin" in made


def test_users_are_made_as_the_units_name_them(tmp_path: Path) -> None:
    """By systemd-sysusers on an empty machine; by name in any case."""
    text = (FOLDER / "aoi.sysusers.conf").read_text()
    users = set(re.findall(r"^u\s+(\S+)", text, re.M))
    assert users == {value for name in UNITS for value in values(name, "User")}
    assert re.findall(r"^g\s+(\S+)", text, re.M) == list({value for name in UNITS for value in values(name, "Group")})
    assert users == set(re.findall(r"^m\s+(\S+)\s+aoi$", text, re.M))
    if not shutil.which("systemd-sysusers"):
        pytest.skip("systemd-sysusers is not installed on this machine; names were compared")
    command = ["systemd-sysusers", "--dry-run", f"--root={tmp_path}", FOLDER / "aoi.sysusers.conf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for user in users:
        assert f"Creating user '{user}'" in done.stderr + done.stdout


def test_kernel_settings_exist() -> None:
    """Every line of aoi.sysctl.conf names a setting that this kernel has."""
    text = (FOLDER / "aoi.sysctl.conf").read_text()
    names = re.findall(r"^([\w.]+) = \d+$", text, re.M)
    assert len(names) == len([row for row in text.splitlines() if not row.startswith("#")]) == 3
    for name in names:
        assert Path("/proc/sys", name.replace(".", "/")).exists(), name
