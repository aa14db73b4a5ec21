"""Texts of others where they are shown or name a file: no cursor moves, no line is faked, no path is left."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_frame
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.messages import Verdict
from pipeline.overlay import OverlayFolder, file_name
from pipeline.shown import PlainFormatter, printable, redacted, safe
from pipeline.stream import Audit, Delivery, SourceCount, open_stream
from pipeline.tables import show_audit, show_status

EVIL = "a\x1b[2J\x1b]0;title\x07\r\n2026-01-01 ERROR aoi: all is lost\u202e\u2028[bold red]\x85\x00"
IDS = [
    "../../x",
    "/etc/passwd",
    "a/b",
    "a-b",
    "a\\b",
    "a\0b",
    "x" * 5000,
    "x" * 5001,
    "x" * 127 + "y",
    "x" * 128,
    "größe-µm",
    "gr..e-.m",
    "-rf",
    "--help",
    ".",
    "..",
    "",
    "~",
    "CON",
    "con:1",
    "a b",
    EVIL,
]


def test_printable_leaves_nothing_that_acts() -> None:
    """Control, direction and separator characters become escapes; letters of any language stay."""
    assert printable("Größe µm 検査 1") == "Größe µm 検査 1"
    assert printable(EVIL).startswith("a\\x1b[2J\\x1b]0;title\\x07\\r\\n2026")
    assert printable(EVIL).isprintable()


@given(st.text(st.characters(codec=None)))
def test_any_text_becomes_printable(text: str) -> None:
    """Half surrogates and all; and once more changes nothing."""
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://user:s3cret@host:6379/0", "redis://user:***@host:6379/0"),
        ("at rediss://:s3cret@host, again", "at rediss://***@host, again"),
        ("redis://s3cret@host", "redis://***@host"),
        ("redis://u:s3/cr?e#t@et@host", "redis://u:***@host"),
        ("unix://u:s3cret@/run/r.sock?db=1", "unix://u:***@/run/r.sock?db=1"),
        ("unix:///r.sock?db=1&password=s3cret&x=2", "unix:///r.sock?db=1&password=***&x=2"),
        ("redis+sentinel://h/s?sentinel_password=s3cret", "redis+sentinel://h/s?sentinel_password=***"),
        ("camera rtsp://admin:s3cret@10.0.0.5/ch1 fails", "camera rtsp://admin:***@10.0.0.5/ch1 fails"),
        ("redis:/u:s3cret@h is no folder", "redis:/u:***@h is no folder"),
        ("redis://host:6379 of panel@0123", "redis://host:6379 of panel@0123"),
        ("panel@0123 is no address", "panel@0123 is no address"),
    ],
)
def test_passwords_of_addresses_are_not_shown(text: str, shown: str) -> None:
    """Wherever in a text the address stands; the rest stays as it is."""
    assert redacted(text) == shown
    assert safe(text) == shown


def test_log_record_is_one_line_and_a_traceback_none_of_its_own() -> None:
    """Neither a message nor an exception's text can look like another record."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(PlainFormatter("%(levelname)s %(message)s"))
    log = logging.Logger("test")
    log.addHandler(handler)
    log.warning("frame %s at redis://u:s3cret@h", EVIL)
    assert out.getvalue().count("\n") == 1
    try:
        raise ValueError(f"{EVIL}\nERROR fake redis://u:s3cret@h")
    except ValueError:
        log.exception("told")
    lines = out.getvalue().split("\n")[1:-1]
    assert lines[0] == "ERROR told"
    assert all(line.startswith("  ") and line.isprintable() for line in lines[1:])
    assert "s3cret" not in out.getvalue()


def audit_of(name: str) -> Audit:
    gaps = [(f"{name}-{name}", 1, 2)]
    return Audit(0, 0, {name: SourceCount(1, {"NG": 1})}, {f"NG {name}": 1}, gaps, [name], amended={name: 1})


def test_tables_show_names_and_do_not_obey_them() -> None:
    """On a real terminal: no control sequence of the name's, no markup of the name's, whole all the same."""
    out = io.StringIO()
    console = Console(file=out, width=400, force_terminal=True, color_system=None)
    show_audit(console, "line", audit_of(EVIL))
    show_status(console, {"line": audit_of(EVIL)})
    assert not {sign for sign in out.getvalue() if not sign.isprintable()} - {"\n", "\x1b"}
    assert "\x1b[2J" not in out.getvalue()
    assert "\x1b]" not in out.getvalue()
    assert out.getvalue().count(f"{printable(EVIL)}") >= 4


def test_results_are_json_whatever_a_name_holds(redis_url: str, line: str) -> None:
    """A line for each verdict, in ASCII; the name itself comes back from it unchanged."""
    stream = open_stream(redis_url, line, "w")
    stream.offer([replace(make_frame(0), name=EVIL)])
    (delivery,) = stream.take(1)
    frame = delivery.frame.without_pixels()
    stream.settle([(delivery, Verdict(frame=frame, judgement="UNINSPECTED", reason=EVIL, detail=EVIL))])
    command = [sys.executable, "-m", "pipeline.cli", "results", "--url", redis_url, "--line", line]
    told = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    assert told.count(b"\n") == 1
    assert told.decode("ascii").strip().isprintable()


# -------------------------------------------------------------- names of files


def test_ids_never_share_a_file() -> None:
    """Different ids, different names; all of them short, plain, and below a folder."""
    names = {frame_id: file_name("NG", frame_id) for frame_id in IDS}
    assert len({name.lower() for name in names.values()}) == len(set(IDS))
    for name in names.values():
        assert len(name) < 200
        assert name.startswith("NG_")
        assert Path(name).name == name
        assert name.isascii()
        assert name.isprintable()
    assert names["a-b"] == "NG_a-b.png", "a plain id is its own name"


@given(st.lists(st.text(st.characters(codec=None), max_size=300), min_size=2, max_size=2, unique=True))
def test_any_two_ids_have_two_names(ids: list[str]) -> None:
    """Plain, cut or replaced: never the same."""
    assert file_name("NG", ids[0]) != file_name("NG", ids[1])
    assert "/" not in file_name("NG", ids[0])


def test_overlays_of_hostile_ids_stay_in_their_folder(tmp_path: Path) -> None:
    """Each has its own picture in the folder, and beside the folder nothing appears."""
    folder, judgement = tmp_path / "inner" / "overlays", "NG"
    overlays = OverlayFolder(folder, (judgement,), limit=1000)
    try:
        for number, frame_id in enumerate(IDS):
            frame = replace(make_frame(number, size=8), frame_id=frame_id, name=frame_id)
            verdict = Verdict(frame=frame.without_pixels(), judgement=judgement, reason=EVIL, mask_shape=(8, 8))
            overlays._write(Delivery(frame, str(number), b"", 0, 0), verdict)
    finally:
        overlays.close()
    assert (overlays.written, overlays.left_out) == (len(IDS), 0)
    assert len(list(folder.iterdir())) == len(set(IDS))
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != folder] == []
