"""Golden templates: found by id and never by path, read once, bounded in memory; what does not fit is told."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import fake_recipe, make_frame
from training_pictures import grey, save

from engines.base import EngineError
from pipeline.errors import RecipeError
from pipeline.golden_templates import GoldenTemplates, templates_of
from pipeline.inspector import Inspector, prepare
from pipeline.messages import Frame
from pipeline.opening import open_engines
from pipeline.preprocess import working_image
from pipeline.recipe import Recipe, parse_recipe
from pipeline.registration import TemplateError
from pipeline.stream import Delivery

THREE = '{"channels": 3}'


def board(seed: int = 0, height: int = 96, width: int = 128) -> np.ndarray:
    """A small part with enough on it to be registered; nowhere as bright as what the fake engine calls a defect."""
    rng, image = np.random.default_rng(seed), np.full((height, width), 90, np.uint8)
    for _ in range(30):
        x, y, w, h = (int(value) for value in rng.integers(0, (width, height, 24, 24)))
        cv2.rectangle(image, (x, y), (x + w, y + h), int(rng.integers(30, 200)), -1)
    return image


def with_template(at: Path, /, model: str = THREE, picture: dict[str, Any] | None = None, **template: Any) -> Recipe:
    return fake_recipe(at, "segment", model, template=template, picture=picture or {})


def frame_of(image: np.ndarray, reference: str = "") -> Frame:
    return Frame(
        frame_id=f"cam-s-{reference}", source="cam", session="s", sequence=0, reference=reference, pixels=image,
        height=image.shape[0], width=image.shape[1],
    )  # fmt: skip


def delivered(frame: Frame) -> Delivery:
    return Delivery(frame, frame.frame_id, b"", frame.payload_bytes, time.time_ns())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with one template of its own and two by reference."""
    save(tmp_path / "golden.png", board(0))
    save(tmp_path / "boards" / "A-1.png", board(1))
    save(tmp_path / "boards" / "b_2.v3.png", board(2))
    return tmp_path


def test_frame_without_reference_gets_the_recipes_file(folder: Path) -> None:
    """And one with a reference the file of that name in the recipe's folder."""
    templates = GoldenTemplates(with_template(folder, file="golden.png", folder="boards"))
    for reference, seed in (("", 0), ("A-1", 1), ("b_2.v3", 2)):
        assert np.array_equal(templates.of(reference), board(seed))


def test_reference_must_be_the_recipes_only_template(folder: Path) -> None:
    """With one template for all, a frame may call it by its name; a frame that wants another is not judged by it."""
    templates = GoldenTemplates(with_template(folder, file="golden.png"))
    assert templates.of("golden") is templates.of("golden.png") is templates.of("")
    with pytest.raises(TemplateError, match=r"names template 'A-1', and the recipe has no template\.folder"):
        templates.of("A-1")


def test_frame_must_name_one_where_there_is_no_file(folder: Path) -> None:
    """None is not any."""
    with pytest.raises(TemplateError, match="the frame names no golden template"):
        GoldenTemplates(with_template(folder, folder="boards")).of("")


HOSTILE = [
    "../golden", "..", ".", ".hidden", "/etc/passwd", "boards/A-1", "a\\b", "A-1\0", "A-1\n", "A 1", "ä", "%2e%2e",
    "~", "C:", "x" * 129, "A-1.png/..", "$(id)",
]  # fmt: skip


@pytest.mark.parametrize("reference", HOSTILE)
def test_hostile_reference_never_becomes_a_path(folder: Path, reference: str) -> None:
    """It is told as what it is, before any file is looked for; the frame is UNINSPECTED with that reason."""
    recipe = with_template(folder, file="golden.png", folder="boards")
    with pytest.raises(TemplateError, match="is no id of a template"):
        GoldenTemplates(recipe).of(reference)
    with Inspector_of(recipe) as inspector:
        job = prepare(delivered(frame_of(board(), reference)), recipe, inspector.spec)
    assert job.fault[0] == "template"
    assert "\n" not in job.fault[1]


def test_template_is_read_once(folder: Path) -> None:
    """The second frame gets the same array, also when the file has gone; nobody can write into it."""
    templates = GoldenTemplates(with_template(folder, folder="boards"))
    first = templates.of("A-1")
    (folder / "boards" / "A-1.png").unlink()
    assert templates.of("A-1") is first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1


def test_what_was_used_longest_ago_makes_room(folder: Path) -> None:
    """Memory is bounded in bytes: with room for two of three, the one not asked for lately is read again."""
    for name in "xyz":
        save(folder / "boards" / f"{name}.png", board(3))
    size = board().nbytes
    templates = GoldenTemplates(with_template(folder, folder="boards"), most_bytes=2 * size)
    x, y = templates.of("x"), templates.of("y")
    assert templates.of("x") is x
    templates.of("z")
    assert templates.kept_bytes == 2 * size
    assert templates.of("x") is x
    assert templates.of("y") is not y


def test_one_template_larger_than_the_bound_is_still_used(folder: Path) -> None:
    """It is the only one then."""
    templates = GoldenTemplates(with_template(folder, folder="boards"), most_bytes=10)
    assert np.array_equal(templates.of("A-1"), board(1))
    assert np.array_equal(templates.of("b_2.v3"), board(2))
    assert templates.kept_bytes == board().nbytes


def test_missing_template_is_told_and_may_come_later(folder: Path) -> None:
    """A new product's template needs no restart."""
    templates = GoldenTemplates(with_template(folder, folder="boards"))
    with pytest.raises(TemplateError, match=r"golden template 'new\.png' is missing"):
        templates.of("new")
    save(folder / "boards" / "new.png", board(7))
    assert np.array_equal(templates.of("new"), board(7))


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "no image"), (b"hello", "no image"), (b"\x89PNG\r\n\x1a\nrest", "cannot be read")],
)
def test_template_that_is_no_image_is_told(folder: Path, content: bytes, told: str) -> None:
    """One line with the file's name."""
    (folder / "boards" / "bad.png").write_bytes(content)
    with pytest.raises(TemplateError, match=told) as error:
        GoldenTemplates(with_template(folder, folder="boards")).of("bad")
    assert "'bad.png'" in str(error.value)
    assert "\n" not in str(error.value)


def test_colour_and_16_bit_templates_become_grey_bytes(folder: Path) -> None:
    """The same way as frames do: weights of the usual grey, upper 8 of the significant bits."""
    save(folder / "boards" / "colour.png", np.dstack([board(1)] * 3))
    save(folder / "boards" / "deep.png", board(1).astype(np.uint16) << 4)
    table = with_template(folder, folder="boards")
    assert np.array_equal(GoldenTemplates(table).of("colour"), board(1))
    with pytest.raises(TemplateError, match="wrong bit depth"):
        GoldenTemplates(table).of("deep")
    deep = fake_recipe(folder, "segment", THREE, template={"folder": "boards"}, optics={"bit_depth": 12})
    assert np.array_equal(GoldenTemplates(deep).of("deep"), board(1))


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ({"file": "none.png"}, r"golden template 'none\.png' is missing"),
        ({"folder": "none"}, "folder 'none' is missing"),
        ({"folder": "golden.png"}, r"folder 'golden\.png' is missing"),
        ({"file": "../outside.png"}, "leads out of the model folder"),
        ({"folder": ".."}, "leads out of the model folder"),
        ({"file": "link.png"}, "leads out of the model folder"),
    ],
)
def test_recipe_without_its_template_is_refused_at_the_start(folder: Path, template: Any, told: str) -> None:
    """Not with the first frame: whoever starts the line reads it."""
    model = folder / "model"
    save(model / "golden.png", board())
    save(folder / "outside.png", board())
    (model / "link.png").symlink_to(folder / "outside.png")
    recipe = with_template(model, **template)
    with pytest.raises(RecipeError, match=told), open_engines(recipe) as engines:
        Inspector(recipe, engines)


def test_link_out_of_the_folder_is_refused_for_a_reference(folder: Path) -> None:
    """A harmless name that leads elsewhere is no template."""
    (folder / "model" / "boards").mkdir(parents=True)
    (folder / "model" / "boards" / "A.png").symlink_to(folder / "golden.png")
    with pytest.raises(TemplateError, match="leads out of the model folder"):
        GoldenTemplates(with_template(folder / "model", folder="boards")).of("A")


def test_network_of_one_channel_is_refused_at_the_start(folder: Path) -> None:
    """It has no place for a template and a difference."""
    recipe = with_template(folder, "{}", file="golden.png")
    with open_engines(recipe) as engines, pytest.raises(EngineError, match="must take 3"):
        Inspector(recipe, engines)


class Inspector_of:  # noqa: N801 - reads as a function
    """An inspector over this recipe's fake engines, for the length of a block."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._engines = recipe, open_engines(recipe)

    def __enter__(self) -> Inspector:
        return Inspector(self._recipe, self._engines.__enter__())

    def __exit__(self, *exc: Any) -> None:
        self._engines.__exit__(*exc)


def verdicts(recipe: Recipe, frames: list[Frame]) -> list[tuple[str, str, str]]:
    """Judgement, reason and detail of each frame."""
    with Inspector_of(recipe) as inspector:
        for frame in frames:
            inspector.add(prepare(delivered(frame), recipe, inspector.spec), 0)
        done = [each for step in range(200) for each in inspector.step(time.monotonic_ns())]
    return [(verdict.judgement, verdict.reason, verdict.detail) for _, verdict in done]


def test_frame_is_judged_against_its_own_template(folder: Path) -> None:
    """One that fits is judged; a wrong template, one of another size and a blank frame are UNINSPECTED and say why."""
    save(folder / "boards" / "small.png", grey(90))
    recipe = with_template(folder, folder="boards")
    shifted = np.roll(board(1), (2, 3), (0, 1))
    judged = verdicts(
        recipe,
        [frame_of(shifted, "A-1"), frame_of(shifted, "b_2.v3"), frame_of(shifted, "small"), frame_of(grey(9), "small")],
    )
    told = {detail.split(":")[0]: (judgement, reason) for judgement, reason, detail in judged}
    assert told == {
        "": ("OK", ""),
        "picture looks too little like its golden template": ("UNINSPECTED", "template"),
        "golden template is 30×40 px, the picture 128×96 px": ("UNINSPECTED", "template"),
        "the picture shows nothing by which it could be registered": ("UNINSPECTED", "template"),
    }


def test_working_image_is_picture_template_and_difference(folder: Path) -> None:
    """Cut to the region of interest after registration, so that the template reaches over the region's border."""
    recipe = with_template(folder, picture={"roi": [20, 10, 60, 40]}, file="golden.png")
    image = np.roll(board(0), (2, 3), (0, 1))
    working = working_image(image, recipe, 3, templates_of(recipe).of(""))
    assert working.shape == (40, 60, 3)
    assert np.array_equal(working[..., 0], image[10:50, 20:80])
    assert np.array_equal(working[..., 1], working[..., 0])
    assert not working[..., 2].any()


def test_contrast_and_scale_apply_to_both(folder: Path) -> None:
    """The difference is that of what the network sees in the other two channels."""
    picture = {"contrast": "equalize", "scale": 0.5}
    recipe = fake_recipe(
        folder, "segment", THREE, template={"file": "golden.png", "align": "none"}, picture=picture,
        optics={"smallest_defect_px": 8},
    )  # fmt: skip
    image = board(0) // 2 + 20
    working = working_image(image, recipe, 3, board(0))
    assert working.shape == (48, 64, 3)
    for plane, each in enumerate((image, board(0))):
        halved = cv2.resize(cv2.equalizeHist(each), (64, 48), interpolation=cv2.INTER_AREA)
        assert np.array_equal(working[..., plane], halved)
    assert np.array_equal(working[..., 2], cv2.absdiff(working[..., 0], working[..., 1]))
    assert working[..., 2].mean() < 5 < np.abs(image.astype(int) - board(0)).mean()


def test_template_must_be_given_where_the_recipe_has_one(folder: Path) -> None:
    """A caller that forgets it gets an error and no picture."""
    recipe = with_template(folder, file="golden.png")
    with pytest.raises(TemplateError, match="to be given"):
        working_image(board(), recipe, 3)
    with pytest.raises(TemplateError, match="3 channels"):
        working_image(board(), recipe, 1, board())


def test_same_recipe_shares_its_templates(folder: Path) -> None:
    """Every frame asks; they are opened once."""
    recipe = with_template(folder, file="golden.png")
    assert templates_of(recipe) is templates_of(recipe)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ({"align": "sift", "file": "a.png"}, "template.align must be one of none, shift, ecc"),
        ({"max_shift_px": 0, "file": "a.png"}, "template.max_shift_px must be above 0"),
        ({"max_shift_px": 1e9, "file": "a.png"}, "template.max_shift_px must be above 0"),
        ({"file": "a\0"}, "template.file must be the image's name"),
        ({"align": "ecc"}, "template.file must be named"),
        ({"files": "a.png"}, "unknown key 'files'; did you mean 'file'"),
    ],
)
def test_recipe_says_what_is_wrong_with_its_template(template: dict[str, Any], told: str) -> None:
    """Every key is checked; settings without a template are a mistake."""
    model = {"file": "net", "classes": ["good", "scratch"]}
    with pytest.raises(RecipeError) as error:
        parse_recipe({"name": "r", "mode": "segment", "segmenter": model, "template": template})
    assert told in str(error.value)


def test_recipe_without_template_is_as_before(tmp_path: Path) -> None:
    """No template, no registration, no third channel needed."""
    recipe = fake_recipe(tmp_path)
    assert not recipe.template.used
    with Inspector_of(recipe) as inspector:
        assert not prepare(delivered(make_frame(0)), recipe, inspector.spec).fault[0]
