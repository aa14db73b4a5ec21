"""The models that come with the software: small, named by their cards, taught on a clean split."""

from __future__ import annotations

import csv
import hashlib
import os
from pathlib import Path

import pytest
from training_pictures import MODELS, REPOSITORY

from engines import open_engine
from engines.base import EngineOptions, Kind
from engines.datasets import open_dataset
from engines.datasets.labelled import Dataset, Options
from engines.datasets.split import read_same_tile, read_split
from engines.onnx_tensors import tensors
from pipeline.recipe import Model, load_recipe, shipped

DATA = Path(os.environ.get("AOI_DATA", REPOSITORY.parent / "shared" / "data"))
KINDS: tuple[Kind, ...] = ("classifier", "segmenter")
MOST_BYTES = 4_000_000  # of a pair


def model_of(name: str, kind: Kind) -> Model:
    model: Model = getattr(load_recipe(name), kind)
    return model


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_pair_is_small_and_its_card_names_it(name: str) -> None:
    """Below 4 MB together, and recipe and card hold the hash of each file."""
    card, sizes = (MODELS / name / "card.md").read_text("utf-8"), []
    for kind in KINDS:
        content = (MODELS / name / model_of(name, kind).file).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert digest == model_of(name, kind).sha256
        assert digest in card
        sizes.append(len(content))
    assert sum(sizes) < MOST_BYTES


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_pair_opens_on_the_default_engine(name: str) -> None:
    """With the classes of its recipe, both files for tiles of one shape."""
    pytest.importorskip("openvino", reason="the default engine is an extra: pip install 'inline-aoi[cpu]'")
    shapes = set()
    for kind in KINDS:
        model = model_of(name, kind)
        options = EngineOptions(max_batch=1, in_flight=1, sha256=model.sha256)
        with open_engine("cpu", MODELS / name / model.file, kind, model.classes, options) as engine:
            shapes.add(engine.spec.tile_shape)
    assert len(shapes) == 1


@pytest.mark.parametrize("name", shipped())
def test_nothing_but_the_model_is_shipped(name: str) -> None:
    """No checkpoint, no weights of torch, no picture: what a line needs, and lists of names."""
    found = sorted(path.relative_to(MODELS / name).as_posix() for path in (MODELS / name).rglob("*") if path.is_file())
    engines = {model_of(name, kind).file for kind in KINDS}
    assert {"card.md", "recipe.toml", *engines} <= set(found)
    rest = set(found) - {"card.md", "recipe.toml", *engines}
    assert all(each.endswith((".txt", ".int8.onnx")) for each in rest)


@pytest.mark.parametrize("path", sorted(MODELS.rglob("*.int8.onnx")), ids=lambda path: path.parent.name)
def test_what_was_made_from_a_model_stands_on_its_card(path: Path) -> None:
    """With its hash, and it is of the same tensors; no promotion is shipped: it holds for one kind of machine."""
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() in (path.parent / "card.md").read_text("utf-8")
    plain = path.with_name(path.name.replace(".int8", ""))
    assert tensors(content) == tensors(plain.read_bytes())
    assert not (path.parent / "promoted.json").exists()


def tiles() -> Dataset:
    """The real magnetic tiles; without them the test is skipped."""
    folder = DATA / "magnetic-tile"
    if not folder.is_dir():
        pytest.skip(f"real pictures are not here: {folder}; set AOI_DATA")
    return open_dataset(folder, Options(good="free"))


def test_the_shipped_split_is_clean() -> None:
    """Of the magnetic tiles no physical one is on two sides, none is scored twice, and every list is of pictures."""
    dataset, lists = tiles(), MODELS / "magnetic-tile"
    split = read_split(dataset, lists)
    joined = {name: names[0] for names in read_same_tile(lists) for name in names}
    part_of = {sample.image: joined.get(sample.group, sample.group) for sample in dataset.samples}
    training, validation, held_out = (
        {part_of[path] for path in side} for side in (split.training, split.validation, split.held_out)
    )
    assert held_out
    assert not held_out & (training | validation)
    assert not training & validation
    assert not split.cuts_groups


def test_every_side_of_the_shipped_split_shows_every_class() -> None:
    """A class that nobody was asked about has no figure; groups are those of the list that came with the tiles."""
    dataset = tiles()
    split = read_split(dataset, MODELS / "magnetic-tile")
    with (dataset.folder / "groups.csv").open(encoding="utf-8") as rows:
        group_of = {row["image"]: row["group"] for row in csv.DictReader(rows)}
    assert {sample.image: sample.group for sample in dataset.samples} == group_of
    for side in (split.training, split.validation, split.held_out):
        shown = {sample.class_index for sample in split.samples(dataset, side)}
        assert shown == set(range(len(dataset.classes)))
