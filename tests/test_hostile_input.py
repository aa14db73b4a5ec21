"""Whatever comes over the wire or out of a file: what it should be, or one error of the right kind."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import cv2
import msgpack
import numpy as np
import pytest
from conftest import make_frame
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines import rle
from engines.base import EngineSpec
from pipeline.errors import RecipeError, SourceError, WireError
from pipeline.inspector import prepare
from pipeline.messages import MAX_BODY_BYTES, MAX_DEFECTS, Defect, Encoding, Frame, PixelFormat, Verdict
from pipeline.recipe import load_recipe, parse_recipe
from pipeline.sources.directory import read_names
from pipeline.stream import read_delivery

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
STAGE = {"file": "net.fake", "classes": ["good", "scratch"]}
BATCHING = {"engine": "fake", "max_batch": 4}
RECIPE = parse_recipe({"name": "fake", "classifier": STAGE, "segmenter": STAGE, "batching": BATCHING})
SPEC = EngineSpec("fake", "classifier", "none", 64, 64, 1, ("good", "scratch"), 4, 2, "")
VERDICT = Verdict(
    frame=make_frame(7),
    judgement="NG",
    reason="scratch",
    scores={"good": 0.1, "scratch": 0.9},
    defects=(Defect(class_name="scratch", score=0.9, bbox=(1, 2, 3, 4), area_px=12, centroid=(2.0, 3.0)),),
    masks={"scratch": rle.encode(np.eye(64, dtype=bool))},
    mask_shape=(64, 64),
)


def body_with(**changes: Any) -> bytes:
    return cast(bytes, msgpack.packb({**msgpack.unpackb(VERDICT.body()), **changes}))


def with_pairs(data: bytes, pairs: bytes, count: int) -> bytes:
    """A msgpack map and, behind its own, pairs that are packed already."""
    facts = msgpack.unpackb(data)
    own = b"".join(cast(bytes, msgpack.packb(part)) for pair in facts.items() for part in pair)
    return b"\xde" + struct.pack(">H", len(facts) + count) + own + pairs


# -------------------------------------------------------------- headers and bodies


HOSTILE_PAIRS = {
    "version twice": b"\xa1v\x01",
    "a key twice": b"\xa1a\xc0\xa1a\xc0",
    "a key twice in a map": b"\xa1a\x82\xa1b\xc0\xa1b\xc0",
    "deep lists": b"\xa1a" + b"\x91" * 5000 + b"\xc0",
    "deep and long lists": b"\xa1a" + b"\xdd\0\1\0\0" * 400,
    "list of 4 G": b"\xa1a\xdd\xff\xff\xff\xff",
    "map of 4 G": b"\xa1a\xdf\xff\xff\xff\xff",
    "text of 4 G": b"\xdb\xff\xff\xff\xff",
    "extension": b"\xa1a\xc7\x08\x05" + bytes(8),
    "timestamp": b"\xa1a\xd6\xff" + bytes(4),
    "number as key": b"\x07\xc0",
    "list as key": b"\x90\xc0",
    "key that is no UTF-8": b"\xa2\xff\xfe\xc0",
    "half a surrogate": b"\xa1a\xa3\xed\xa0\x80",
}


@pytest.mark.parametrize("name", HOSTILE_PAIRS)
def test_hostile_msgpack_is_a_wire_error(name: str) -> None:
    """In a frame's header and in a verdict's body that are right but for this."""
    header, body, pairs = make_frame(0).header(), VERDICT.body(), HOSTILE_PAIRS[name]
    assert Frame.from_wire(with_pairs(header, b"\xa1a\x81\xa1b\xc0", 1)) == Frame.from_wire(header)
    assert Verdict.from_wire(header, with_pairs(body, b"\xa1a\xc0", 1)).judgement == "NG"
    count = 2 if name == "a key twice" else 1
    with pytest.raises(WireError):
        Frame.from_wire(with_pairs(header, pairs, count))
    with pytest.raises(WireError):
        Verdict.from_wire(header, with_pairs(body, pairs, count))


@pytest.mark.parametrize("name", ["height", "sequence", "triggered_ns", "deadline_ns"])
@pytest.mark.parametrize("value", [1 << 63, (1 << 64) - 1, -1, 1e300, float("inf"), float("nan"), True])
def test_number_that_is_no_count_is_refused(name: str, value: Any) -> None:
    """Beyond int64, negative, no whole number: nothing that a later sum could trip over."""
    facts = msgpack.unpackb(make_frame(0).header())
    with pytest.raises(WireError):
        Frame.from_wire(msgpack.packb({**facts, name: value}))


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": {"good": float("nan")}},
        {"scores": {"good": float("-inf")}},
        {"settled_ns": 1 << 63},
        {"batch_size": -1},
        {"defects": [["scratch", float("nan"), [1, 2, 3, 4], 6, [1, 2], 0, 0, 0]]},
        {"defects": [["scratch", 0.5, [1, 2, 3, 4], 6, [1, float("inf")], 0, 0, 0]]},
        {"defects": [[]] * (MAX_DEFECTS + 1)},
        {"masks": {str(i): b"" for i in range(257)}},
        {"anything": [[0] * 60_000] * 20},
        {"masks": {"scratch": bytes(MAX_BODY_BYTES)}},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_hostile_verdict_is_a_wire_error(changes: dict[str, Any]) -> None:
    """Numbers that are none, and more of anything than a frame can have."""
    Verdict.from_wire(make_frame(0).header(), body_with())
    with pytest.raises(WireError):
        Verdict.from_wire(make_frame(0).header(), body_with(**changes))


def test_verdict_with_more_than_readers_take_is_cut_and_says_so() -> None:
    """The largest defects stay, masks of millions of runs go: a verdict that no reader took would be a lost one."""
    small = replace(VERDICT.defects[0], area_px=1)
    many = replace(VERDICT, defects=(small,) * MAX_DEFECTS + VERDICT.defects, detail="first")
    read = Verdict.from_wire(make_frame(0).header(), many.body())
    assert len(read.defects) == MAX_DEFECTS
    assert read.defects[0].area_px == 12
    assert read.detail == "first; 1 smaller defects left out"
    runs = np.stack([np.arange(1, 1 << 24, 3), np.ones(5592405)], axis=1).astype(np.uint32).ravel()
    wide = replace(VERDICT, masks={"scratch": runs}, mask_shape=(4096, 4096))
    read = Verdict.from_wire(make_frame(0).header(), wide.body())
    assert (dict(read.masks), read.detail) == ({}, "masks left out: too many runs")


def test_scores_that_are_no_numbers_are_left_out() -> None:
    """The verdict that tells of a network gone mad can be read, and is JSON for every reader."""
    sick = replace(VERDICT, judgement="UNINSPECTED", reason="engine", scores={"good": float("nan"), "scratch": 0.5})
    read = Verdict.from_wire(make_frame(0).header(), sick.body())
    assert dict(read.scores) == {"scratch": 0.5}
    assert "NaN" not in json.dumps(read.as_json())


def test_header_that_no_worker_would_read_is_refused_at_the_source() -> None:
    """A lot's name of 100 kB is told to whoever wrote it, not found out frame by frame."""
    with pytest.raises(WireError, match="shorten"):
        replace(make_frame(0), lot="x" * 100_000).header()


# -------------------------------------------------------------- anything at all


def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """Some bytes changed, cut out or put in."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        length = draw(st.integers(0, 8))
        found[at : at + length] = draw(st.binary(max_size=8))
    return bytes(found)


PICTURE = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
PAYLOADS = {
    "png": bytes(cv2.imencode(".png", PICTURE)[1]),
    "jpeg": bytes(cv2.imencode(".jpg", PICTURE)[1]),
    "raw": PICTURE.tobytes(),
}


@st.composite
def wires(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A header and a payload: right, changed here and there, or anything."""
    encoding = draw(st.sampled_from(list(PAYLOADS)))
    form = draw(st.sampled_from(["mono8", "mono16", "bgr8"]))
    size = (40, 50) if encoding == "raw" else draw(st.sampled_from([(0, 0), (40, 50), (50, 40)]))
    frame = replace(
        make_frame(0),
        encoding=cast(Encoding, encoding),
        pixel_format=cast(PixelFormat, form),
        height=size[0],
        width=size[1],
        pixels=b"",
    )
    header, payload = frame.header(), PAYLOADS[encoding]
    header = draw(st.just(header) | st.just(mutated(draw, header)) | st.binary(max_size=100))
    return header, draw(st.just(payload) | st.just(mutated(draw, payload)) | st.binary(max_size=100))


@settings(max_examples=200, deadline=None)
@given(wires())
def test_any_frame_is_prepared_or_has_a_fault(wire: tuple[bytes, bytes]) -> None:
    """The worker's own way in: tiles of the network's size, or a reason; never an exception."""
    job = prepare(read_delivery("1-0", "cam", *wire), RECIPE, SPEC)
    if job.fault[0]:
        assert job.fault[0] == "undecodable"
        assert "\n" not in job.fault[1]
    else:
        assert all(tile.shape == (64, 64, 1) and tile.dtype == np.uint8 for tile in job.tiles)
        assert job.tiles


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_verdict_is_read_or_refused(data: st.DataObject) -> None:
    """What is read can be used in full: masks, JSON, and written again."""
    draw = cast(st.DrawFn, data.draw)
    header, body = (mutated(draw, part) for part in (make_frame(0).header(), VERDICT.body()))
    try:
        verdict = Verdict.from_wire(header, draw(st.just(body) | st.binary(max_size=200)))
    except WireError:
        return
    assert verdict.mask().shape == verdict.mask_shape
    json.dumps(verdict.as_json(), allow_nan=False)
    Verdict.from_wire(verdict.frame.header(), verdict.body())


@FEW
@given(st.lists(st.integers(-(2**40), 2**40), max_size=8), st.integers(0, 50), st.integers(0, 50))
def test_any_runs_are_decoded_or_refused(runs: list[int], height: int, width: int) -> None:
    """A mask of the shape, or ValueError."""
    try:
        mask = rle.decode(runs, (height, width))
    except ValueError:
        return
    assert mask.shape == (height, width)
    assert mask.sum() == sum(runs[1::2])


@FEW
@given(st.data(), st.binary(max_size=200))
def test_any_recipe_is_read_or_refused(tmp_path: Path, data: st.DataObject, other: bytes) -> None:
    """A shipped recipe changed here and there, or anything: a recipe, or RecipeError in one line."""
    draw = cast(st.DrawFn, data.draw)
    text = mutated(draw, Path(load_recipe("panel").folder / "recipe.toml").read_bytes())
    (tmp_path / "recipe.toml").write_bytes(draw(st.just(text) | st.just(other)))
    try:
        recipe = load_recipe(str(tmp_path))
    except RecipeError:
        return
    assert recipe.stages


@FEW
@given(st.binary(max_size=200))
def test_any_list_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    """Names, or SourceError."""
    (tmp_path / "list").write_bytes(content)
    try:
        names = read_names(tmp_path / "list")
    except SourceError:
        return
    assert all(names)


def test_struct_of_foreign_header_is_bounded_before_it_is_read() -> None:
    """A header of any size is refused by its size alone."""
    delivery = read_delivery("1-0", "cam", b"\xc6" + struct.pack(">I", 1 << 26) + bytes(1 << 26), b"")
    assert "larger than" in delivery.frame.fault
    assert delivery.header == b""
    assert delivery.size > 1 << 26
