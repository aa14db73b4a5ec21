"""A recipe says what it means or is refused, with the key and what it may be."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import RecipeError
from pipeline.recipe import MODELS, Recipe, find_recipe, load_recipe, parse_recipe, shipped

WHOLE = """
name = "glass"
mode = "cascade"
[optics]
um_per_px = 10.0
bit_depth = 12
smallest_defect_px = 4
[picture]
roi = [8, 16, 128, 64]
contrast = "clahe"
scale = 0.5
overlap = 16
[classifier]
file = "classifier.onnx"
classes = ["good", "defect"]
threshold = 0.02
[segmenter]
file = "segmenter.onnx"
classes = ["good", "scratch", "pit"]
sha256 = "00"
[judge]
min_area_px = 3
[[accept]]
class = "pit"
zone = [0, 0, 10, 10]
max_area_px = 9
max_length_mm = 0.1
max_count = 2
[[accept]]
class = "scratch"
[batching]
engine = "fake"
max_wait_ms = 2
"""
TABLE: dict[str, Any] = {
    "name": "glass",
    "optics": {"um_per_px": 10.0},
    "classifier": {"file": "c.onnx", "classes": ["good", "defect"]},
    "segmenter": {"file": "s.onnx", "classes": ["good", "scratch", "pit"]},
    "accept": [{"class": "pit", "max_area_px": 9}],
}


def with_value(path: str, value: object) -> dict[str, Any]:
    """TABLE with one key set; a number in the path counts rules."""
    table = copy.deepcopy(TABLE)
    place: Any = table
    *tables, key = path.split(".")
    for name in tables:
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
    place[key] = value
    return table


def test_whole_recipe_is_read(tmp_path: Path) -> None:
    """Every table arrives where it belongs, defaults fill the rest, whole numbers do for fractions."""
    (tmp_path / "recipe.toml").write_text(WHOLE)
    recipe = load_recipe(str(tmp_path))
    assert (recipe.name, recipe.mode, recipe.folder) == ("glass", "cascade", tmp_path)
    assert recipe.picture.roi == (8, 16, 128, 64)
    assert (recipe.optics.bit_depth, recipe.optics.smallest_defect_px) == (12, 4.0)
    assert isinstance(recipe.batching.max_wait_ms, float)
    assert (recipe.classifier.threshold, recipe.segmenter.threshold) == (0.02, 0.01)
    assert [rule.class_name for rule in recipe.accept] == ["pit", "scratch"]
    assert recipe.accept[0].zone == (0, 0, 10, 10)
    assert recipe.batching.max_batch == 8
    assert recipe.defect_classes == ("scratch", "pit")


def test_hash_covers_every_letter(tmp_path: Path) -> None:
    """A verdict names the recipe's text: the label changes with a comment, and only with the text."""
    path = tmp_path / "recipe.toml"
    path.write_text(WHOLE)
    first = load_recipe(str(path))
    assert first.hash == hashlib.sha256(WHOLE.encode()).hexdigest()
    assert first.label == f"glass@{first.hash[:12]}"
    assert load_recipe(str(tmp_path)).label == first.label
    path.write_text(WHOLE + "# tighter\n")
    assert load_recipe(str(path)).label != first.label


def test_recipe_without_name_is_called_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is given as `.` from inside its folder: a verdict must not say `@hash`."""
    folder = tmp_path / "lid-7"
    folder.mkdir()
    (folder / "recipe.toml").write_text(WHOLE.replace('name = "glass"', ""))
    assert load_recipe(str(folder)).name == "lid-7"
    monkeypatch.chdir(folder)
    assert load_recipe("recipe.toml").name == "lid-7"


def test_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    """An editor under Windows puts one at the start."""
    (tmp_path / "recipe.toml").write_bytes(b"\xef\xbb\xbf" + WHOLE.encode())
    assert load_recipe(str(tmp_path)).name == "glass"


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("mod", "mode"),
        ("judg", "judge"),
        ("optics.um_per_pixel", "um_per_px"),
        ("picture.contrats", "contrast"),
        ("classifier.treshold", "threshold"),
        ("segmenter.class", "classes"),
        ("judge.min_area", "min_area_px"),
        ("accept.0.max_area", "max_area_px"),
        ("accept.0.clas", "class"),
        ("batching.max_wait", "max_wait_ms"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest(path: str, nearest: str) -> None:
    """A misspelt limit must not be dropped, in any table."""
    with pytest.raises(RecipeError, match=f"unknown key .*did you mean '{nearest}"):
        parse_recipe(with_value(path, 1))


def test_unknown_key_far_from_any_lists_what_is_known() -> None:
    """Where nothing is near, all keys of that table are named, and none that is not the user's."""
    with pytest.raises(RecipeError, match="known: um_per_px, bit_depth, smallest_defect_px"):
        parse_recipe(with_value("optics.zzzzzz", 1))
    with pytest.raises(RecipeError, match="known: name, mode") as told:
        parse_recipe(with_value("zzzzzz", 1))
    assert "hash" not in str(told.value)


@pytest.mark.parametrize("key", ["folder", "hash"])
def test_what_the_software_adds_is_no_key(key: str) -> None:
    """A recipe cannot claim another folder or hash."""
    with pytest.raises(RecipeError, match="not keys of a recipe"):
        parse_recipe(with_value(key, "x"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("mode", "both"),
        ("picture.contrast", "gamma"),
        ("picture.roi", [1, 2, 3]),
        ("picture.roi", [-1, 0, 5, 5]),
        ("picture.scale", 0.0),
        ("picture.scale", 4.1),
        ("picture.scale", -1.0),
        ("picture.scale", float("nan")),
        ("picture.scale", 0.25),  # the smallest defect, 4 px, would have 1
        ("picture.overlap", -1),
        ("picture.overlap", 1025),
        ("optics.bit_depth", 7),
        ("optics.bit_depth", 17),
        ("optics.um_per_px", -0.1),
        ("optics.um_per_px", float("inf")),
        ("classifier.threshold", -0.01),
        ("classifier.threshold", 1.01),
        ("classifier.threshold", float("nan")),
        ("judge.audit_share", -0.1),
        ("judge.audit_share", 1.1),
        ("judge.min_score", -0.1),
        ("judge.min_score", 1.1),
        ("judge.min_area_px", 0),
        ("judge.review_above", -0.1),
        ("judge.ng_above", 0.0),
        ("judge.ng_above", float("nan")),
        ("picture.min_size", [64]),
        ("picture.min_size", [0, 64]),
        ("batching.max_batch", 0),
        ("batching.max_batch", 1025),
        ("batching.in_flight", 0),
        ("batching.in_flight", 17),
        ("batching.threads", -1),
        ("batching.max_wait_ms", -0.1),
        ("batching.max_wait_ms", float("inf")),
        ("classifier.file", ""),
        ("segmenter.file", "a\0b"),
        ("classifier.classes", []),
        ("segmenter.classes", ["good"]),
        ("segmenter.classes", ["good", "pit", "pit"]),
        ("accept.0.class", "good"),
        ("accept.0.class", "dent"),
        ("accept.0.zone", [1, 2, 3]),
        ("accept.0.zone", [-5, 0, 10, 10]),
        ("accept.0.max_area_px", -1),
        ("accept.0.max_count", -1),
        ("accept.0.max_length_mm", -0.1),
    ],
)
def test_value_out_of_range_is_refused(path: str, value: object) -> None:
    """Each limit of each key, told by the key's full name."""
    parse_recipe(TABLE)
    told = path.replace(".0.", "[0].").replace("[0]", r"\[0\]")
    with pytest.raises(RecipeError, match=f"{told} must be"):
        parse_recipe(with_value(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("picture.scale", 4.0),
        ("picture.scale", 0.5),
        ("picture.overlap", 0),
        ("picture.overlap", 1024),
        ("optics.bit_depth", 8),
        ("optics.bit_depth", 16),
        ("classifier.threshold", 0),
        ("classifier.threshold", 1),
        ("judge.audit_share", 1.0),
        ("judge.review_above", 5.0),
        ("judge.ng_above", 1.01),
        ("picture.min_size", [64, 48]),
        ("batching.max_batch", 1),
        ("batching.max_batch", 1024),
        ("accept.0.max_count", 0),
        ("accept.0.max_length_mm", 0.5),
    ],
)
def test_value_at_its_limit_is_taken(path: str, value: object) -> None:
    """The limits themselves are allowed."""
    assert isinstance(parse_recipe(with_value(path, value)), Recipe)


def test_length_limit_needs_the_size_of_a_pixel() -> None:
    """Without µm per pixel every length is 0 mm: the limit would accept any scratch."""
    table = with_value("accept.0.max_length_mm", 0.5)
    del table["optics"]
    with pytest.raises(RecipeError, match=r"max_length_mm .*um_per_px"):
        parse_recipe(table)


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("name", 5, "text"),
        ("mode", ["cascade"], "text"),
        ("optics", 5, "a table"),
        ("optics.bit_depth", 8.0, "a whole number"),
        ("optics.bit_depth", True, "a whole number"),
        ("optics.um_per_px", "10", "a number"),
        ("optics.um_per_px", True, "a number"),
        ("batching.max_wait_ms", 10**400, "a number"),
        ("picture.roi", [0.0, 0.0, 1.0, 1.0], "a list of whole numbers"),
        ("picture.roi", [True, False, True, True], "a list of whole numbers"),
        ("picture.roi", 5, "a list of whole numbers"),
        ("classifier.classes", "good", "a list of texts"),
        ("classifier.classes", [1, 2], "a list of texts"),
        ("accept", 5, "a table"),
        ("accept", ["pit"], "a table"),
    ],
)
def test_value_of_the_wrong_kind_is_refused(path: str, value: object, wanted: str) -> None:
    """No silent conversion: TOML says what is a number."""
    *_, key = path.split(".")
    with pytest.raises(RecipeError, match=f"{key}.*must be {wanted}"):
        parse_recipe(with_value(path, value))


def test_one_rule_needs_no_list() -> None:
    """`[accept]` instead of `[[accept]]` is one rule."""
    (rule,) = parse_recipe(with_value("accept", {"class": "pit"})).accept
    assert rule.class_name == "pit"


def test_rule_without_class_is_refused() -> None:
    """A rule that belongs to no class is no rule."""
    with pytest.raises(RecipeError, match=r"accept\[0\].*'class' is missing"):
        parse_recipe(with_value("accept", [{"max_area_px": 3}]))


@pytest.mark.parametrize(
    ("mode", "stages", "defects"),
    [
        ("cascade", ("classifier", "segmenter"), ("scratch", "pit")),
        ("segment", ("segmenter",), ("scratch", "pit")),
        ("classify", ("classifier",), ("defect",)),
    ],
)
def test_only_the_stages_of_the_mode_are_needed(mode: str, stages: tuple[str, ...], defects: tuple[str, ...]) -> None:
    """A mode names its defects by its last stage, and refuses only a stage of its own that is missing."""
    table = {**copy.deepcopy(TABLE), "mode": mode, "accept": []}
    recipe = parse_recipe(table)
    assert (recipe.stages, recipe.defect_classes) == (stages, defects)
    for stage in ("classifier", "segmenter"):
        rest = {key: value for key, value in table.items() if key != stage}
        if stage in stages:
            with pytest.raises(RecipeError, match=f"{stage}.file"):
                parse_recipe(rest)
        else:
            assert parse_recipe(rest).stages == stages


@pytest.mark.parametrize("file", ["../other.onnx", "/etc/passwd", ".", "sub/../../x.onnx", "link.onnx"])
def test_model_file_outside_its_folder_is_refused(tmp_path: Path, file: str) -> None:
    """By dots, absolutely or through a link: a recipe from elsewhere cannot make us open any file."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    recipe = parse_recipe(with_value("classifier.file", file), folder)
    with pytest.raises(RecipeError, match="leads out of the model folder"):
        recipe.model_path(recipe.classifier)


def test_model_file_in_its_folder_is_found(tmp_path: Path) -> None:
    """Beside the recipe, or in a folder below."""
    recipe = parse_recipe(with_value("classifier.file", "nets/c.onnx"), tmp_path)
    assert recipe.model_path(recipe.classifier) == tmp_path / "nets" / "c.onnx"


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe",
        b'name = "\xfc"',
        b"name =",
        b"name = 1\nname = 2",
        b"x = " + b"[" * 5000,
        b"x = " + b"9" * 5000,
        b"[optics]\n[optics]",
    ],
)
def test_file_that_is_no_toml_is_refused(tmp_path: Path, text: bytes) -> None:
    """Not UTF-8, not TOML, a key twice, nesting and numbers without end: one line with the file's name."""
    path = tmp_path / "recipe.toml"
    path.write_bytes(text)
    with pytest.raises(RecipeError, match="cannot be read") as told:
        load_recipe(str(tmp_path))
    assert str(path) in str(told.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80))
def test_any_bytes_are_a_recipe_error(tmp_path: Path, data: bytes) -> None:
    """Nothing but RecipeError comes out of a file that is no recipe."""
    for text in (data, WHOLE.encode()[: 3 * len(data)] + data):
        (tmp_path / "recipe.toml").write_bytes(text)
        with pytest.raises(RecipeError):
            load_recipe(str(tmp_path))


@pytest.mark.parametrize("name", ["", "no-such-recipe", "a\0b", "x" * 300, "../../etc", "/dev/null"])
def test_unknown_recipe_is_told(name: str) -> None:
    """Whatever the name looks like, the error says what may be given."""
    with pytest.raises(RecipeError, match=r"give a recipe\.toml"):
        find_recipe(name)


def test_nearly_right_name_is_corrected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt shipped recipe is answered with the right one; a right one is found."""
    (tmp_path / "magnetic-tile").mkdir()
    (tmp_path / "magnetic-tile" / "recipe.toml").write_text(WHOLE)
    monkeypatch.setattr("pipeline.recipe.MODELS", tmp_path)
    assert shipped() == ["magnetic-tile"]
    assert load_recipe("magnetic-tile").name == "glass"
    with pytest.raises(RecipeError, match=r"did you mean magnetic-tile\?"):
        load_recipe("magnetic-tiles")
    with pytest.raises(RecipeError, match="shipped: magnetic-tile"):
        load_recipe("zzz")


def test_every_shipped_recipe_is_one() -> None:
    """What comes with the software can be read, and its files are there."""
    for name in shipped():
        recipe = load_recipe(name)
        for stage in recipe.stages:
            model = getattr(recipe, stage)
            path = recipe.model_path(model)
            assert path.is_file(), f"{MODELS / name}: {model.file}"
            if model.sha256:
                assert hashlib.sha256(path.read_bytes()).hexdigest() == model.sha256
