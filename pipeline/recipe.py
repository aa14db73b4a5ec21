"""A recipe: what to inspect, with which engines, and what makes a part good; plain data, checked on reading.

A model folder holds `recipe.toml`, the engine files it names, and a card. Every key is known here; one that
is not is refused with the nearest that is, because a misspelt limit that is silently dropped is an escape.
Reading a recipe opens no engine file; `Recipe.model_path` says where each lies: always below the model folder, by
whatever way the name or a link leads, so that a folder is all there is to copy, to check and to trust. A `sha256`
pins the file's content: another file is refused before any runtime reads it. Shipped recipes state it.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from engines.contrast import CONTRASTS
from pipeline.errors import RecipeError
from pipeline.registration import ALIGNS, MAX_SHIFT_PX

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MODELS = Path(__file__).resolve().parent.parent / "engines" / "models"
MODES = ("cascade", "classify", "segment")
FAIL_SAFES = ("REVIEW", "NG", "UNINSPECTED")  # never OK: that would be an escape by design


@dataclass(frozen=True, kw_only=True)
class Optics:
    """What one pixel means on the part."""

    um_per_px: float = 0.0  # 0: not known, areas stay in px
    bit_depth: int = 8  # significant bits of mono16 samples: 9…16
    smallest_defect_px: float = 4.0  # shorter side, in pixels of the frame


@dataclass(frozen=True, kw_only=True)
class Picture:
    """How a frame becomes tiles of the network's size."""

    min_size: tuple[int, ...] = ()  # width, height in px; a smaller frame is broken and not inspected
    roi: tuple[int, ...] = ()  # x, y, width, height in px of the frame; empty: all of it
    contrast: str = "none"
    scale: float = 1.0  # applied before tiling; < 1 shrinks
    overlap: int = 32  # px shared by neighbouring tiles, after scaling


@dataclass(frozen=True, kw_only=True)
class Template:
    """The golden template that a frame is shown beside; its networks take picture, template and difference."""

    file: str = ""  # image in the model folder, for frames that name no template
    folder: str = ""  # of images in the model folder: `<folder>/<the frame's reference>.png`
    align: str = "shift"
    max_shift_px: float = float(MAX_SHIFT_PX)  # no corner of a frame may lie farther off, in px of the frame

    @property
    def used(self) -> bool:
        """Is there one?"""
        return bool(self.file or self.folder)


@dataclass(frozen=True, kw_only=True)
class Model:
    """One stage of the cascade."""

    file: str = ""
    classes: tuple[str, ...] = ()  # index 0: good part, background
    sha256: str = ""  # of the file; another one is not loaded; empty: any file of that name
    threshold: float = 0.01  # classifier: P(defect) from which a tile is suspect


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What scores and defects mean for the part."""

    min_area_px: int = 1  # smaller regions are noise
    min_score: float = 0.0  # regions of less mean confidence are noise
    review_above: float = 1.01  # P(defect) from which a frame without a region goes to REVIEW; > 1: never
    ng_above: float = 1.01  # P(defect) from which a frame without a region is NG; > 1: never
    audit_share: float = 0.0  # share of frames the classifier passed that the segmenter sees all the same
    fail_safe: str = "REVIEW"  # judgement of a frame that cannot be judged before its deadline


@dataclass(frozen=True, kw_only=True)
class Accept:
    """Regions of this class that a good part may have; without a rule none may."""

    class_name: str
    zone: tuple[int, ...] = ()  # x, y, width, height in px; empty: everywhere
    max_area_px: int = 0
    max_length_mm: float = 0.0  # 0: no limit of its own
    max_count: int = 1


@dataclass(frozen=True, kw_only=True)
class Batching:
    """Which engine runs it and how long a frame may wait for company."""

    engine: str = "cpu"
    fallback: str = ""  # engine for a machine where the first cannot be opened; marked on every verdict; empty: none
    device: str = ""
    threads: int = 0
    in_flight: int = 2
    max_batch: int = 8
    max_wait_ms: float = 0.0
    deadline_ms: float = 0.0  # from the trigger to the verdict; the producer writes it on every frame; 0: none


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """See the module's text. `hash` covers the recipe's text, so that a verdict can name what judged it."""

    name: str
    mode: str = "cascade"
    optics: Optics = field(default_factory=Optics)
    picture: Picture = field(default_factory=Picture)
    template: Template = field(default_factory=Template)
    classifier: Model = field(default_factory=Model)
    segmenter: Model = field(default_factory=Model)
    judge: Judge = field(default_factory=Judge)
    accept: tuple[Accept, ...] = ()
    batching: Batching = field(default_factory=Batching)
    folder: Path = Path()
    hash: str = ""

    @property
    def label(self) -> str:
        """`name@hash`, as it stands in verdicts."""
        return f"{self.name}@{self.hash[:12]}"

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages this mode runs: `classifier`, `segmenter`, or both."""
        return {"cascade": ("classifier", "segmenter"), "classify": ("classifier",)}.get(self.mode, ("segmenter",))

    @property
    def defect_classes(self) -> tuple[str, ...]:
        """Classes but the good one, of the stage that names the defects."""
        model = self.classifier if self.mode == "classify" else self.segmenter
        return model.classes[1:]

    def model_path(self, model: Model) -> Path:
        """Where the engine file lies; RecipeError when the name leads out of the model folder."""
        path = (self.folder / model.file).resolve()
        if self.folder.resolve() not in path.parents:
            raise RecipeError(f"recipe {self.name}: file {model.file!r} leads out of the model folder; move it there")
        return path


def shipped() -> list[str]:
    """Names of the recipes that come with the software."""
    return sorted(path.parent.name for path in MODELS.glob("*/recipe.toml"))


def find_recipe(name: str) -> Path:
    """The recipe file for a shipped name, a model folder or a path to a recipe.toml."""
    path = Path(name)
    candidates = [path, path / "recipe.toml", MODELS / name / "recipe.toml"]
    for candidate in candidates:
        if os.path.isfile(candidate):  # unlike Path's, not upset by a name no file could have
            return candidate
    near = difflib.get_close_matches(name, shipped(), 1)
    hint = f"did you mean {near[0]}?" if near else f"shipped: {', '.join(shipped()) or 'none'}"
    raise RecipeError(f"no recipe {name!r}: give a recipe.toml, a folder with one, or a shipped name ({hint})")


def load_recipe(name: str) -> Recipe:
    """Read and check a recipe by name, folder or file. Raises RecipeError with the key and what it may be."""
    path = find_recipe(name)
    try:
        text = path.read_bytes()
        table = tomllib.loads(text.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not TOML, numbers or nesting without end
        raise RecipeError(f"recipe {path} cannot be read: {error}") from error
    try:
        return parse_recipe(table, folder=path.parent, digest=hashlib.sha256(text).hexdigest())
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def parse_recipe(table: Mapping[str, Any], folder: Path = Path(), digest: str = "") -> Recipe:
    """A checked Recipe of a parsed TOML table; RecipeError when a key is unknown or a value impossible."""
    table = {"name": folder.resolve().name, **table}
    if "folder" in table or "hash" in table:
        raise RecipeError("recipe: `folder` and `hash` are not keys of a recipe; remove them")
    recipe: Recipe = _build(Recipe, {**table, "folder": folder, "hash": digest}, "recipe")
    _check(recipe)
    return recipe


def _build(kind: type[Any], table: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    names = {"class": "class_name"} if kind is Accept else {}
    table = {names.get(key, key): value for key, value in table.items()}
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_public(hints))}"
            raise RecipeError(f"{where}: unknown key {key!r}; {hint}")
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    for key in missing:
        if key not in table:
            raise RecipeError(f"{where}: {key.removesuffix('_name')!r} is missing")
    return kind(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in table.items()})


def _public(hints: Mapping[str, Any]) -> list[str]:
    return [name for name in hints if name not in ("folder", "hash")]


def _value(hint: Any, value: Any, where: str) -> Any:
    if hasattr(hint, "__dataclass_fields__"):
        return _build(hint, _table(value, where), where)
    if hint == tuple[Accept, ...]:
        rules = value if isinstance(value, list) else [value]
        return tuple(_build(Accept, _table(rule, where), f"{where}[{i}]") for i, rule in enumerate(rules))
    if hint in (tuple[str, ...], tuple[int, ...]):
        item = str if hint == tuple[str, ...] else int
        if not isinstance(value, list) or not all(type(each) is item for each in value):
            raise RecipeError(f"{where}: must be a list of {'texts' if item is str else 'whole numbers'}")
        return tuple(value)
    if hint is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    if hint in (int, float, str) and type(value) is not hint:
        words = {int: "a whole number", float: "a number", str: "text"}
        raise RecipeError(f"{where}: must be {words[hint]}, not {value!r}")
    return value


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: must be a table, not {value!r}")
    return value


def _check(recipe: Recipe) -> None:
    """Every rule is (true?, key, what to write instead)."""
    b, j, p, o, t = recipe.batching, recipe.judge, recipe.picture, recipe.optics, recipe.template
    rules = [
        (recipe.mode in MODES, "mode", f"one of {', '.join(MODES)}"),
        (p.contrast in CONTRASTS, "picture.contrast", f"one of {', '.join(CONTRASTS)}"),
        (len(p.roi) in (0, 4) and min(p.roi, default=0) >= 0, "picture.roi", "[x, y, width, height] in px"),
        (len(p.min_size) in (0, 2) and min(p.min_size, default=1) >= 1, "picture.min_size", "[width, height] in px"),
        (0 < p.scale <= 4, "picture.scale", "above 0 and at most 4"),
        (p.scale * o.smallest_defect_px >= 2, "picture.scale", "such that the smallest defect keeps 2 px"),
        (0 <= p.overlap <= 1024, "picture.overlap", "0…1024 px"),
        (t.align in ALIGNS, "template.align", f"one of {', '.join(ALIGNS)}"),
        (0 < t.max_shift_px <= 4096, "template.max_shift_px", "above 0 and at most 4096 px"),
        ("\0" not in t.file + t.folder, "template.file", "the image's name in the model folder"),
        (t.used or t == Template(), "template.file", "named, or template.folder"),
        (8 <= o.bit_depth <= 16, "optics.bit_depth", "8…16"),
        (0 <= o.um_per_px < math.inf, "optics.um_per_px", "0 (not known) or more"),
        (0 <= recipe.classifier.threshold <= 1, "classifier.threshold", "a probability, 0…1"),
        (0 <= j.audit_share <= 1, "judge.audit_share", "a share, 0…1"),
        (0 <= j.min_score <= 1, "judge.min_score", "0…1"),
        (j.min_area_px >= 1, "judge.min_area_px", "1 or more"),
        (j.review_above >= 0, "judge.review_above", "0…1, or above 1 for never"),
        (j.ng_above > 0, "judge.ng_above", "above 0, or above 1 for never"),
        (j.fail_safe in FAIL_SAFES, "judge.fail_safe", f"one of {', '.join(FAIL_SAFES)}"),
        (1 <= b.max_batch <= 1024, "batching.max_batch", "1…1024"),
        (1 <= b.in_flight <= 16, "batching.in_flight", "1…16"),
        (0 <= b.threads <= 1024, "batching.threads", "0 (all cores) or more"),
        (0 <= b.max_wait_ms < math.inf, "batching.max_wait_ms", "0 or more"),
        (0 <= b.deadline_ms <= 86_400_000, "batching.deadline_ms", "0 (none) or up to a day"),
    ]
    for stage in recipe.stages:
        model: Model = getattr(recipe, stage)
        is_name = bool(model.file) and "\0" not in model.file
        rules.append((is_name, f"{stage}.file", "the engine file's name in the model folder"))
        rules.append((len(model.classes) >= 2, f"{stage}.classes", "the good class and at least one defect"))
        rules.append((len(set(model.classes)) == len(model.classes), f"{stage}.classes", "without repetition"))
    for i, rule in enumerate(recipe.accept):
        known = rule.class_name in recipe.defect_classes
        rules.append((known, f"accept[{i}].class", f"one of {', '.join(recipe.defect_classes)}"))
        in_frame = len(rule.zone) in (0, 4) and min(rule.zone, default=0) >= 0
        rules.append((in_frame, f"accept[{i}].zone", "[x, y, width, height] in px"))
        rules.append((rule.max_area_px >= 0, f"accept[{i}].max_area_px", "0 or more"))
        rules.append((rule.max_count >= 0, f"accept[{i}].max_count", "0 or more"))
        limit = rule.max_length_mm >= 0 and (o.um_per_px > 0 or not rule.max_length_mm)
        rules.append((limit, f"accept[{i}].max_length_mm", "0 (no limit) or more, and needs optics.um_per_px"))
    for holds, key, wanted in rules:
        if not holds:
            raise RecipeError(f"recipe {recipe.name}: {key} must be {wanted}")
