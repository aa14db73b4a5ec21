"""deploy/ as a whole: no file that nobody checks, scripts and commands in its texts, the way offline."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from aoi_words import check_command

from pipeline.errors import Exit

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
README = (DEPLOY / "README.md").read_text()
SCRIPTS = sorted(path for path in DEPLOY.rglob("make-*") if path.is_file())
CHECKED = {  # which test holds which files
    "test_deploy.py": ["README.md", "redis/make-*"],
    "test_deploy_systemd.py": ["systemd/*"],
    "test_deploy_redis.py": ["redis/*"],
    "test_deploy_containers.py": ["compose/*", "kubernetes/*.yaml", "kustomization.yaml"],
    "test_deploy_monitoring.py": ["prometheus/*.yaml", "grafana/*.json"],
}


def files() -> list[Path]:
    """All that is in deploy/ but for what somebody made there and git ignores."""
    made = ("compose/secrets", "compose/images", "kubernetes/secrets")
    found = (path.relative_to(DEPLOY) for path in DEPLOY.rglob("*") if path.is_file())
    return [path for path in found if str(path.parent) not in made]


def test_no_file_is_left_unchecked() -> None:
    """Each file belongs to a test, and the files that a test must know are named in it."""
    for path in files():
        holders = [test for test, patterns in CHECKED.items() if any(path.match(pattern) for pattern in patterns)]
        assert holders, f"deploy/{path} is checked by no test"
    systemd = {path.name for path in (DEPLOY / "systemd").iterdir()}
    parsed = {name for name in systemd if name.endswith(".service")} | {"gpu.conf", "backoff.conf"}
    parsed |= {"aoi.sysusers.conf", "aoi.sysctl.conf"} | {name for name in systemd if name.endswith(".env.example")}
    assert systemd == parsed
    redis = {"redis.conf", "tls.conf", "users.acl", "make-passwords", "make-certificates"}
    assert {path.name for path in (DEPLOY / "redis").iterdir()} == redis
    compose = {"compose.yaml", "line.env", "Dockerfile", "Dockerfile.dockerignore"}
    assert {path.name for path in (DEPLOY / "compose").iterdir() if path.is_file()} == compose
    for test in CHECKED:
        assert (ROOT / "tests" / test).exists()


@pytest.mark.parametrize("path", [path for path in files() if path.suffix == ".yaml"], ids=str)
def test_yaml_says_nothing_twice(path: Path) -> None:
    """It parses, and no key hides another."""

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
            names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            assert len(names) == len(set(names)), f"{names} at {node.start_mark}"
            return super().construct_mapping(node, deep)

    assert list(yaml.load_all((DEPLOY / path).read_text(), Strict))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    """POSIX sh by shellcheck, executable, and --help or nothing at all tells how to use them."""
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([checker, "--shell=sh", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    asked = subprocess.run([script], capture_output=True, text=True, check=False)
    assert asked.returncode == 2
    assert asked.stderr.startswith("usage: ")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


@pytest.mark.parametrize("block", blocks("sh"), ids=lambda block: block.splitlines()[0][:40])
def test_commands_to_type(block: str) -> None:
    """Every block is sh, every file of ours in it exists, every `aoi` in it parses."""
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in re.findall(r"(?<![/\w])deploy/[\w./*-]+", block):
        assert list(ROOT.glob(name)), name
    for words in re.findall(r"^/opt/aoi(?:-[\d.]+)?/bin/aoi (.+)$", block, re.M):
        check_command(words.split())


def test_what_the_text_names_is_there() -> None:
    """Files, folders, units, exit codes and settings in the README are those that there are."""
    for name in re.findall(r"`((?:systemd|redis|compose|kubernetes|prometheus|grafana)/[\w./-]*)`", README):
        assert (DEPLOY / name).exists(), name
    for unit in re.findall(r"(aoi-[\w]+)@?[\w]*\.service", README):
        assert list((DEPLOY / "systemd").glob(f"{unit}*.service")), unit
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.M)}
    assert table == {code.value for code in Exit} - {Exit.OK, Exit.MISMATCH, Exit.MISSED, Exit.REFUSED}, (
        "those of daemons, and doctor"
    )
    for link in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (DEPLOY / link).exists(), link


def test_budgets_in_the_text_are_the_formula_of_redis_conf() -> None:
    """One formula for maxmemory, told in two places with the same numbers."""
    conf = (DEPLOY / "redis/redis.conf").read_text()
    for words in ("2 KiB", "64 MiB a worker", "1.3"):
        assert words in conf
        assert words in README


def test_a_line_on_a_pc_is_told_where_people_start() -> None:
    """The project's README leads here."""
    assert "deploy/README.md" in (ROOT / "README.md").read_text()
