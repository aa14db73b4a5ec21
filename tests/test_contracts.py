"""What holds for the code as a whole: import directions, lint, types, the README's file map and commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from configparser import ConfigParser
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import click
import pytest

from pipeline.cli import aoi
from pipeline.errors import Exit

ROOT = Path(__file__).resolve().parent.parent
OWNERS = packages_distributions()  # module → distributions
README = (ROOT / "README.md").read_text()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


COMMANDS = dict(commands(aoi, "aoi"))


def test_imports_point_one_way() -> None:
    """The layers of the design hold, and redis, openvino and torch each have one door."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("check", [["check"], ["format", "--check"]])
def test_ruff(check: list[str]) -> None:
    """No lint, and the format is ruff's."""
    done = run("ruff", *check, ".")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_mypy() -> None:
    """Types are whole and right."""
    done = run("mypy")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_help_and_stands_in_the_readme(name: str) -> None:
    """Whoever reads --help learns what a command does; whoever reads the README learns that it exists."""
    command = COMMANDS[name]
    assert command.help, f"{name} has no help"
    if not isinstance(command, click.Group):
        typed = name.removeprefix("aoi ") if name.startswith("aoi bench") else name  # also a script of its own
        assert re.search(rf"^ *{typed}( |$)", command.help, re.MULTILINE), f"{name} --help shows no example"
    assert f"`{name}`" in README, f"{name} is not in the README"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts[0]} has no help"


def brought_by(names: Iterable[str]) -> set[str]:
    """These distributions and all that they need by themselves, in normal form."""
    found, left = set[str](), list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", left.pop().strip(), maxsplit=1)[0]).lower()
        if name in found:
            continue
        found.add(name)
        with suppress(PackageNotFoundError):  # for another Python version or system
            left += [need for need in requires(name) or () if "extra ==" not in need]
    return found


def test_every_command_loads_on_a_bare_install() -> None:
    """Without any extra: what a module needs at its top is a requirement, or it is imported when it is used."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    there = brought_by(config["options"]["install_requires"].strip().splitlines())
    owners = {module: {re.sub(r"[-_.]+", "-", name).lower() for name in names} for module, names in OWNERS.items()}
    hidden = [module for module, names in owners.items() if not names & there and "inline-aoi" not in names]
    assert {"openvino", "pytest"} <= set(hidden)
    assert not {"mcap", "click", "cv2", "redis"} & set(hidden)
    code = (
        "import sys, json; sys.modules.update(dict.fromkeys(json.loads(sys.stdin.read())));"
        "from pipeline.cli import aoi; print(len(aoi.commands))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(hidden), cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(aoi.commands)


def test_file_map_is_true() -> None:
    """Every module stands in the README's file map, and everything in the map exists."""
    block = README.split("<!-- file map -->")[1]
    mapped = set(re.findall(r"^\s*([\w./-]+\.(?:py|lua))\s", block, re.MULTILINE))
    named = {path.name for path in map(Path, mapped)}
    folders = ("pipeline", "engines", "bench")
    real = {path.name for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".lua")}
    real -= {"__init__.py", "__main__.py"}
    assert named - {"__init__.py", "__main__.py"} == real


def test_exit_codes_stand_in_the_readme() -> None:
    """Named exit codes are part of the interface."""
    for code in Exit:
        assert re.search(rf"\|\s*{code.value}\s*\|\s*`{code.name}`", README), f"{code.name} is not in the README"


def test_nothing_tells_where_it_was_made() -> None:
    """No path of a developer's machine and no registry host in what is tracked."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    private = re.compile(r"(?<![\w.])/(?:root|home/\w+|work)/|pypi\.org|file:///opt")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in (".py", ".md", ".cfg", ".toml", ".lua", ".txt") and path != Path(__file__):
            found = private.search(path.read_text(errors="replace"))
            assert not found, f"{name}: {found}"
