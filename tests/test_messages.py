"""What travels: every frame and verdict comes back as it went, and foreign bytes are told, never trusted."""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import fields, replace
from typing import Any, cast

import cv2
import msgpack
import numpy as np
import pytest
from conftest import make_frame
from hypothesis import given
from hypothesis import strategies as st

from engines import rle
from pipeline.errors import WireError
from pipeline.messages import (
    JUDGEMENTS,
    MAX_HEADER_BYTES,
    MAX_PIXELS,
    SCHEMA,
    Defect,
    Frame,
    Verdict,
)

FORMATS = ["mono8", "mono16", "bgr8"]
texts = st.text(max_size=20)
naturals = st.integers(0, 2**63 - 1)
scores = st.floats(0, 1)
frames = st.builds(
    Frame,
    **{f.name: texts for f in fields(Frame) if f.type == "str"},
    **{f.name: naturals for f in fields(Frame) if f.type == "int" and f.name not in ("height", "width")},
    height=st.integers(0, 16384),
    width=st.integers(0, 16384),
    pixel_format=st.sampled_from(FORMATS),
    encoding=st.sampled_from(["raw", "png", "jpeg"]),
    pixels=st.binary(max_size=50),
)
defects = st.builds(
    Defect,
    class_name=texts,
    score=scores,
    bbox=st.tuples(naturals, naturals, naturals, naturals),
    area_px=naturals,
    centroid=st.tuples(scores, scores),
    area_mm2=scores,
    length_mm=scores,
    width_mm=scores,
)


def image_of(form: str, height: int = 24, width: int = 40) -> np.ndarray:
    """A smooth picture that uses the format's whole range and differs in every channel."""
    y, x = np.mgrid[:height, :width]
    ramp = (y + x) / (height + width - 2)
    if form == "mono16":
        return (ramp * 65535).astype(np.uint16)
    gray = (ramp * 255).astype(np.uint8)
    return np.stack([gray, gray // 2, 255 - gray], axis=2) if form == "bgr8" else gray


def encoded(extension: str, image: np.ndarray) -> bytes:
    ok, data = cv2.imencode(extension, image)
    assert ok
    return data.tobytes()


def frame_of(pixels: Any, form: str = "mono8", encoding: str = "raw", shape: tuple[int, int] = (0, 0)) -> Frame:
    size = {"height": shape[0], "width": shape[1]}
    kind = {"pixel_format": form, "encoding": encoding}
    return replace(make_frame(0), pixels=pixels, **size, **kind)


def header_with(**changes: Any) -> bytes:
    return cast(bytes, msgpack.packb({**msgpack.unpackb(make_frame(0).header()), **changes}))


def a_verdict(**changes: Any) -> Verdict:
    mask = np.zeros((64, 64), bool)
    mask[3:6, 10:12] = True
    defect = Defect(class_name="scratch", score=0.5, bbox=(10, 3, 2, 3), area_px=6, centroid=(10.5, 4.0))
    facts: dict[str, Any] = {
        "frame": make_frame(0).without_pixels(),
        "judgement": "NG",
        "reason": "scratch",
        "scores": {"good": 0.25, "scratch": 0.75},
        "defects": (defect,),
        "masks": {"scratch": rle.encode(mask)},
        "mask_shape": (64, 64),
        "batch_size": 3,
    }
    return Verdict(**{**facts, **changes})


def body_with(**changes: Any) -> bytes:
    return cast(bytes, msgpack.packb({**msgpack.unpackb(a_verdict().body()), **changes}))


# ---------------------------------------------------------------------- frames


@given(frames)
def test_frame_comes_back_with_every_fact(frame: Frame) -> None:
    """Header and payload hold all there is; nothing is rounded, cut or renamed."""
    again = Frame.from_wire(frame.header(), frame.payload())
    assert again == frame
    assert again.pixels == frame.pixels
    assert again.payload_bytes == len(cast(bytes, frame.pixels))


@pytest.mark.parametrize("form", FORMATS)
def test_raw_image_is_used_where_it_arrived(form: str) -> None:
    """Decoding raw pixels copies nothing: the image lies in the received bytes."""
    image = image_of(form)
    received = image.tobytes()
    frame = Frame.from_wire(frame_of(image, form, shape=(24, 40)).header(), received)
    assert np.array_equal(frame.image(), image)
    assert frame.image().dtype == image.dtype
    assert np.shares_memory(frame.image(), np.frombuffer(received, np.uint8))


def test_raw_payload_is_not_copied_on_the_way_out() -> None:
    """An image in one block travels from where it lies; a cut-out is put into one block and stays right."""
    image = image_of("mono16")
    assert np.shares_memory(np.frombuffer(frame_of(image, "mono16").payload(), np.uint16), image)
    cut_out = image[4:20:2, 3:30]
    sent = bytes(frame_of(cut_out, "mono16").payload())
    assert np.array_equal(frame_of(sent, "mono16", shape=cut_out.shape).image(), cut_out)


@pytest.mark.parametrize("form", FORMATS)
def test_png_payload_is_decoded_exactly(form: str) -> None:
    """PNG carries all three formats without loss, in the format's own depth and channels."""
    image = image_of(form)
    decoded = frame_of(encoded(".png", image), form, "png", (24, 40)).image()
    assert decoded.dtype == image.dtype
    assert np.array_equal(decoded, image)


@pytest.mark.parametrize("form", ["mono8", "bgr8"])
def test_jpeg_payload_is_decoded(form: str) -> None:
    """JPEG comes back within its compression loss."""
    image = image_of(form)
    decoded = frame_of(encoded(".jpg", image), form, "jpeg").image()
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).mean() < 6


def test_gray_and_colour_files_become_what_the_header_says() -> None:
    """A colour file as mono8 is grey, a grey file as bgr8 has three equal channels, transparency is dropped."""
    gray = image_of("mono8")
    same = np.dstack([gray, gray, gray])
    assert np.array_equal(frame_of(encoded(".png", same), "mono8", "png").image(), gray)
    assert np.array_equal(frame_of(encoded(".png", gray), "bgr8", "png").image(), same)
    assert np.array_equal(frame_of(encoded(".png", np.dstack([same, gray])), "mono8", "png").image(), gray)


def test_no_format_is_turned_by_an_exif_tag() -> None:
    """A mask and a defect's place belong to the pixels as they were recorded, in colour as in grey."""
    data = encoded(".jpg", image_of("bgr8"))
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6: turn right
    turned = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (40, 24, 3), "the tag works"
    assert frame_of(turned, "bgr8", "jpeg").image().shape == (24, 40, 3)
    assert frame_of(turned, "mono8", "jpeg").image().shape == (24, 40)


@pytest.mark.parametrize(
    ("extension", "really", "said"),
    [
        (".png", "mono16", "mono8"),
        (".png", "mono8", "mono16"),
        (".png", "mono16", "bgr8"),
        (".png", "bgr8", "mono16"),
        (".jpg", "mono8", "mono16"),
    ],
)
def test_wrong_bit_depth_is_told(extension: str, really: str, said: str) -> None:
    """8 bits read as 16 or the other way round would be a picture, but of something else."""
    encoding = "png" if extension == ".png" else "jpeg"
    with pytest.raises(WireError, match="wrong bit depth"):
        frame_of(encoded(extension, image_of(really)), said, encoding).image()


def test_sixteen_bit_colour_is_not_silently_shortened() -> None:
    """A 12 bit colour image in a 16 bit file would come out nearly black."""
    image = np.full((8, 8, 3), 4000, np.uint16)
    with pytest.raises(WireError, match="wrong bit depth"):
        frame_of(encoded(".png", image), "bgr8", "png").image()


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.95])
def test_cut_off_file_is_told(encoding: str, keep: float) -> None:
    """Whatever is missing at the end, nothing is judged on half an image filled up with grey."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8)
    data = encoded(".png" if encoding == "png" else ".jpg", noise)
    assert frame_of(data, "mono8", encoding).image().shape == (200, 200)
    told = "does not decode" if encoding == "png" else "cut off"
    with pytest.raises(WireError, match=told):
        frame_of(data[: int(keep * len(data))], "mono8", encoding).image()
    with pytest.raises(WireError, match=told):
        frame_of(data[:-1], "mono8", encoding).image()


def test_jpeg_padded_by_its_camera_is_read() -> None:
    """Zeros behind the end mark, up to a block, are no damage."""
    data = encoded(".jpg", image_of("mono8"))
    assert frame_of(data + bytes(2000), "mono8", "jpeg").image().shape == (24, 40)


@given(st.binary(max_size=200), st.sampled_from(FORMATS), st.sampled_from(["raw", "png", "jpeg"]))
def test_foreign_pixels_are_a_wire_error(data: bytes, form: str, encoding: str) -> None:
    """No payload gets past `image` as anything but an image or a WireError."""
    for start in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
        with pytest.raises(WireError):
            frame_of(start + data + b"\xff\xd9", form, encoding, (1000, 1)).image()


def test_picture_of_absurd_size_is_refused() -> None:
    """A small file may claim more pixels than any camera has."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for width, height in ((20_000, 20_000), (100_000, 100_000), (2**31 - 1, 1), (0, 5)):
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        with pytest.raises(WireError):
            frame_of(png, "mono8", "png").image()


@pytest.mark.parametrize(("shape", "count"), [((4, 4), 15), ((4, 4), 17), ((0, 0), 0), ((0, 4), 0), ((4, 4), 0)])
def test_raw_pixels_that_do_not_fill_their_shape(shape: tuple[int, int], count: int) -> None:
    """Too few, too many or none: the message says what is there and what it should be."""
    with pytest.raises(WireError, match=f"carries {count}"):
        frame_of(bytes(count), shape=shape).image()


def test_header_and_file_must_agree_on_the_size() -> None:
    """A file of another size than the header's is not this frame's image."""
    data = encoded(".png", image_of("mono8"))
    with pytest.raises(WireError, match="24"):
        frame_of(data, "mono8", "png", (24, 41)).image()


def test_fault_of_the_source_is_told_instead_of_pixels() -> None:
    """A frame that could not be read travels with its reason, and whoever looks at it hears it."""
    frame = replace(make_frame(0), fault="the file is empty")
    with pytest.raises(WireError, match="the file is empty"):
        Frame.from_wire(frame.header(), frame.payload()).image()


def test_verdict_keeps_a_frame_without_its_pixels() -> None:
    """Identity and times stay, megabytes do not."""
    frame = make_frame(3)
    assert frame.without_pixels() == frame
    assert frame.without_pixels().payload_bytes == 0


def test_name_that_is_not_utf8_travels() -> None:
    """A file name of an old camera PC must not stop the line; what cannot be written becomes a question mark."""
    frame = replace(make_frame(0), name=os.fsdecode(b"bild_\xfc.png"))
    assert Frame.from_wire(frame.header()).name == "bild_?.png"
    verdict = a_verdict(detail=os.fsdecode(b"\xfc"))
    assert Verdict.from_wire(frame.header(), verdict.body()).detail == "?"


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": 0},
        {"v": "1"},
        {"v": None},
        {"v": [1]},
        {"height": -1},
        {"height": 1.5},
        {"height": float("nan")},
        {"height": True},
        {"height": "4"},
        {"height": 1 << 40, "width": 1 << 20},
        {"height": MAX_PIXELS, "width": 2},
        {"sequence": -1},
        {"sequence": None},
        {"triggered_ns": -5},
        {"frame_id": b"bytes"},
        {"source": 7},
        {"name": ["a"]},
        {"pixel_format": "mono7"},
        {"pixel_format": {}},
        {"encoding": "gif"},
        {"encoding": ["raw"]},
        {"name": "x" * MAX_HEADER_BYTES},
    ],
)
def test_header_that_cannot_be_true_is_refused(changes: dict[str, Any]) -> None:
    """Another schema, wrong kinds, negative and absurd sizes: one WireError each."""
    Frame.from_wire(header_with())
    with pytest.raises(WireError):
        Frame.from_wire(header_with(**changes))


def test_newer_schema_is_named() -> None:
    """The message says which schema was met, which is read, and what to do."""
    with pytest.raises(WireError, match=rf"schema {SCHEMA + 1}.*reads {SCHEMA}.*update"):
        Frame.from_wire(header_with(v=SCHEMA + 1))
    with pytest.raises(WireError, match=rf"schema {SCHEMA + 1}.*update"):
        Verdict.from_wire(header_with(), body_with(v=SCHEMA + 1))


@pytest.mark.parametrize("missing", ["v", "frame_id", "source", "session", "sequence"])
def test_header_without_identity_is_refused(missing: str) -> None:
    """A frame nobody can name cannot have a verdict of its own."""
    facts = msgpack.unpackb(replace(make_frame(1), triggered_ns=0).header())
    del facts[missing]
    with pytest.raises(WireError):
        Frame.from_wire(msgpack.packb(facts))


def test_unknown_facts_of_the_same_schema_are_ignored() -> None:
    """A newer writer may add a fact; pixels cannot be smuggled in by the header."""
    frame = Frame.from_wire(header_with(operator="Kim", pixels=b"xx"), b"1234")
    assert frame.pixels == b"1234"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb([1, 2]),
        msgpack.packb(5),
        msgpack.packb({1: 2}),
        msgpack.packb({b"v": 1}),
        b"\x91" * 5000 + b"\xc0",
        b"\x81\xa1v\xa1\xff",
        b"\x81\xa1v\xc7\x03\xff\0\0\0",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        msgpack.packb({"v": 1}) * 2,
    ],
)
def test_bytes_that_are_no_map_are_refused(data: bytes) -> None:
    """Nothing, no msgpack, no map, foreign keys, endless nesting, lengths beyond the end, two messages in one."""
    with pytest.raises(WireError):
        Frame.from_wire(data)
    with pytest.raises(WireError):
        Verdict.from_wire(make_frame(0).header(), data)


@given(st.binary(max_size=300))
def test_random_bytes_are_a_wire_error(data: bytes) -> None:
    """Whatever arrives, nothing but a WireError comes out."""
    with pytest.raises(WireError):
        Frame.from_wire(data)
    with pytest.raises(WireError):
        Verdict.from_wire(make_frame(0).header(), data)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=4) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([f.name for f in fields(Frame)]), anything)
def test_wrong_value_anywhere_in_a_header(name: str, value: Any) -> None:
    """A header with any one fact replaced by anything is a frame that can be asked for its image, or a WireError."""
    try:
        frame = Frame.from_wire(header_with(**{name: value}), bytes(64 * 64))
        frame.image()
    except WireError:
        return
    assert Frame.from_wire(frame.header()) == frame


# -------------------------------------------------------------------- verdicts


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    pixels = st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    masks = draw(st.dictionaries(texts, pixels, max_size=3))
    return Verdict(
        frame=draw(frames).without_pixels(),
        judgement=draw(st.sampled_from(JUDGEMENTS)),
        scores=draw(st.dictionaries(texts, scores, max_size=3)),
        defects=tuple(draw(st.lists(defects, max_size=3))),
        masks={name: rle.encode(np.array(mask).reshape(shape)) for name, mask in masks.items()},
        mask_shape=shape,
        **{f.name: draw(texts) for f in fields(Verdict) if f.type == "str"},
        **{f.name: draw(naturals) for f in fields(Verdict) if f.type == "int"},
    )


@given(verdicts())
def test_verdict_comes_back_with_every_fact(verdict: Verdict) -> None:
    """Scores, defects, masks and times are the same after the wire as before."""
    again = Verdict.from_wire(verdict.frame.header(), verdict.body())
    assert {name: runs.tolist() for name, runs in again.masks.items()} == {
        name: runs.tolist() for name, runs in verdict.masks.items()
    }
    assert replace(again, masks={}) == replace(verdict, masks={})


@given(verdicts())
def test_verdict_as_json_can_be_written_and_read(verdict: Verdict) -> None:
    """Plain values only; masks are in Kaggle's text form."""
    line = json.loads(json.dumps(verdict.as_json()))
    assert line["judgement"] == verdict.judgement
    assert line["frame_id"] == verdict.frame.frame_id
    for name, runs in verdict.masks.items():
        assert rle.from_text(line["masks"][name]).tolist() == runs.tolist()


def test_mask_of_one_class_and_of_all() -> None:
    """Asked for a class, its pixels; asked for none, those of all classes together; an unknown class has none."""
    one, two = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    one[0, 0], two[3, 4], two[0, 0] = True, True, True
    verdict = a_verdict(masks={"one": rle.encode(one), "two": rle.encode(two)}, mask_shape=(4, 5))
    assert np.array_equal(verdict.mask("one"), one)
    assert np.array_equal(verdict.mask("two"), two)
    assert np.array_equal(verdict.mask(), one | two)
    assert not verdict.mask("three").any()


def test_verdict_under_an_unreadable_header_is_kept() -> None:
    """Even a frame whose header is garbage has a verdict that can be read, and says so."""
    verdict = Verdict.from_wire(b"garbage", a_verdict(judgement="UNINSPECTED").body())
    assert verdict.judgement == "UNINSPECTED"
    assert "unreadable" in verdict.frame.fault


@pytest.mark.parametrize(
    "changes",
    [
        {"judgement": "GOOD"},
        {"judgement": None},
        {"judgement": ["OK"]},
        {"reason": 5},
        {"detail": {}},
        {"worker": b"w"},
        {"batch_size": "3"},
        {"settled_ns": None},
        {"settled_ns": 1.5},
        {"scores": 5},
        {"scores": [1]},
        {"scores": {"good": "high"}},
        {"mask_shape": 5},
        {"mask_shape": [1]},
        {"mask_shape": [1, 2, 3]},
        {"mask_shape": ["a", "b"]},
        {"mask_shape": [-64, -64]},
        {"mask_shape": [1 << 40, 1 << 40]},
        {"mask_shape": [2, 2]},
        {"masks": [1]},
        {"masks": {"scratch": "text"}},
        {"masks": {"scratch": b"123"}},
        {"masks": {"scratch": np.array([0, 5], "<u4").tobytes()}},
        {"masks": {"scratch": np.array([4096, 2], "<u4").tobytes()}},
        {"defects": 5},
        {"defects": [5]},
        {"defects": [["scratch"]]},
        {"defects": [["scratch", 0.5, [1, 2, 3, 4], 6, [1, 2], 0, 0, 0, 0]]},
        {"defects": [["scratch", 0.5, [1, 2], 6, [1, 2], 0, 0, 0]]},
        {"defects": [["scratch", "high", [1, 2, 3, 4], 6, [1, 2], 0, 0, 0]]},
        {"defects": [[None, 0.5, [1, 2, 3, 4], 6, [1, 2], 0, 0, 0]]},
    ],
)
def test_verdict_that_cannot_be_true_is_refused(changes: dict[str, Any]) -> None:
    """Unknown judgements, wrong kinds and masks that leave their frame: one WireError each, on reading."""
    Verdict.from_wire(header_with(), body_with())
    with pytest.raises(WireError):
        Verdict.from_wire(header_with(), body_with(**changes))


def test_verdict_without_judgement_is_refused() -> None:
    """Nothing is assumed where the judgement is missing."""
    facts = msgpack.unpackb(a_verdict().body())
    del facts["judgement"]
    with pytest.raises(WireError, match="judgement"):
        Verdict.from_wire(header_with(), msgpack.packb(facts))


@given(st.sampled_from([f.name for f in fields(Verdict) if f.name != "frame"]), anything)
def test_wrong_value_anywhere_in_a_verdict(name: str, value: Any) -> None:
    """A verdict with any one fact replaced by anything can be used in full, or is a WireError."""
    try:
        verdict = Verdict.from_wire(header_with(), body_with(**{name: value}))
    except WireError:
        return
    verdict.mask()
    json.dumps(verdict.as_json())
    assert Verdict.from_wire(header_with(), verdict.body()).judgement == verdict.judgement
