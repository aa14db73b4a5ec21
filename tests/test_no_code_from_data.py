"""Nothing that runs what it reads: no pickle, no eval, no shell, no loader that could do either, anywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("pipeline", "engines", "bench") for path in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "code"}
BUILTINS = {"eval", "exec", "compile", "__import__", "input"}
CALLS = {
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "tempfile.mktemp",
    "logging.config.listen",
    "pandas.read_pickle",
    "msgpack.Unpacker",
}
NEEDED = {"torch.load": ("weights_only", True)}
FORBIDDEN = {"shell": True, "allow_pickle": True, "trust_remote_code": True, "weights_only": False}


def offences(source: str) -> Iterator[str]:
    """What stands there that must not, with its line."""
    tree = ast.parse(source)
    names = dict(_imported(tree))
    for node in ast.walk(tree):
        for module in _modules(node):
            if module.split(".")[0] in MODULES:
                yield f"line {node.lineno}: import of {module}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            yield from (f"line {node.lineno}: {what}" for what in _call(node, names))


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Local name → what it stands for: `import numpy as np`, `from os import system as s`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _call(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    first, _, rest = ast.unparse(node.func).partition(".")
    called = f"{names.get(first, first)}.{rest}".rstrip(".")
    words = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant) and word.arg}
    if called in CALLS or called in BUILTINS:
        yield called
    if called in NEEDED and words.get(NEEDED[called][0]) != NEEDED[called][1]:
        yield f"{called} without {'='.join(map(str, NEEDED[called]))}"
    yield from (f"{called}({name}={value})" for name, value in FORBIDDEN.items() if words.get(name) is value)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_runs_nothing_it_reads(path: Path) -> None:
    """By its syntax tree, so under whatever name it was imported."""
    assert not list(offences(path.read_text()))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads as parse",
        "import marshal as m",
        "import shelve",
        "eval(x)",
        "exec(x)",
        "__import__(x)",
        "import os as o\no.system(x)",
        "from os import popen as p\np(x)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "from subprocess import Popen\nPopen(x, shell=True)",
        "import numpy as np\nnp.load(x, allow_pickle=True)",
        "import torch\ntorch.load(x)",
        "import torch as t\nt.load(x, weights_only=False)",
        "from torch import load\nload(x)",
        "import yaml\nyaml.load(x)",
        "from yaml import load\nload(x)",
    ],
)
def test_offence_is_seen(source: str) -> None:
    """The test above would say so."""
    assert list(offences(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(x, weights_only=True)",
        "import re\nre.compile(x)",
        "import numpy as np\nnp.load(x)",
        "import yaml\nyaml.safe_load(x)",
        "model.eval()",
        "self._core.compile_model(x)",
    ],
)
def test_harmless_call_is_let_through(source: str) -> None:
    """What only sounds alike, or is done as it should be."""
    assert not list(offences(source))
