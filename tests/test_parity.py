"""The parity gate's own sums: what counts as a difference, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.parity import Allowed, Compared, Differences, Parity, Said, by_class, worst_flips
from pipeline.parity_tables import card_section, with_section


def said(judgement: str = "OK", reason: str = "", p: float = 0.0, labels: object = None) -> Said:
    scores = np.array([[1 - p, p]], np.float32)
    mask = None if labels is None else np.asarray(labels, np.uint8)
    confidence = None if mask is None else np.full(mask.shape, 200, np.uint8)
    return Said(judgement, reason, scores, mask, confidence)  # type: ignore[arg-type]


def seen(parity: Parity, ok: int = 15, ng: int = 15) -> Parity:
    parity.judged.update(OK=ok, NG=ng)
    return parity


def test_a_flip_is_one_of_the_judgement_or_of_the_class_it_names() -> None:
    """Scores however far apart on one side of every rule are none."""
    found = Differences()
    found.add("a", "good", said("OK", p=0.0), said("OK", p=0.4))
    found.add("b", "crack", said("NG", "crack"), said("OK"))
    found.add("c", "crack", said("NG", "crack"), said("NG", "pit"))
    assert [(flip.image, flip.was, flip.now) for flip in found.flips] == [
        ("b", "NG crack", "OK"),
        ("c", "NG crack", "NG pit"),
    ]
    assert [flip.image for flip in found.to_ok] == ["b"]
    assert found.largest_score == pytest.approx(0.4)
    assert found.flipped.count == 2


def test_masks_are_compared_pixel_by_pixel_and_class_by_class() -> None:
    """Confidence counts where the label is the same; a class has figures of its own."""
    found = Differences()
    was = said("NG", "x", labels=[[0, 1], [1, 1]])
    now = said("NG", "x", labels=[[0, 1], [1, 2]])
    assert now.confidence is not None
    now.confidence[0, 0], now.confidence[1, 1] = 190, 0
    found.add("a", "crack", was, now)
    found.add("b", "good", was, was)
    assert found.mask_share == pytest.approx(1 / 8)
    assert found.confidence == 10
    assert by_class(found)["crack"] == (1, 0, 0.0, 0.25)
    assert by_class(found)["good"] == (1, 0, 0.0, 0.0)


def parity_of(compared: Compared) -> Parity:
    parity = seen(Parity("cpu"))
    parity.compared = [Compared("cpu", 1), compared]
    return parity


def test_one_flip_refuses_unless_it_is_allowed() -> None:
    """By share; those let through by number, beside it."""
    compared = Compared("cpu-int8", 8)
    for i in range(99):
        compared.against.add(str(i), "good", said(), said())
    compared.against.add("x", "crack", said("NG", "crack"), said())
    parity = parity_of(compared)
    assert parity.refusals("cpu-int8", Allowed()) == [
        "1 of 100 judged otherwise at batch 8",
        "1 let through that the reference holds back at batch 8",
    ]
    assert len(parity.refusals("cpu-int8", Allowed(flips=0.01))) == 1
    assert parity.refusals("cpu-int8", Allowed(flips=0.01, to_ok=1)) == []


def test_what_is_never_allowed() -> None:
    """Scores that are no numbers, a batch that fails, a judgement that depends on the company."""
    everything = Allowed(1.0, 1000, 1.0)
    broken = Compared("a", 3)
    broken.against.add("x", "good", said(), Said("UNINSPECTED", "engine", finite=False))
    assert "no number at batch 3" in parity_of(broken).refusals("a", everything)[0]
    company = Compared("a", 3)
    company.company.add("x", "good", said(), said("NG", "crack"))
    assert parity_of(company).refusals("a", everything) == ["1 judged otherwise in company than alone at batch 3"]
    failing = Compared("a", 3, faults=["out of memory"])
    assert parity_of(failing).refusals("a", everything) == ["it fails at batch 3: out of memory"]


def test_alike_by_chance_is_not_enough() -> None:
    """A probability that is far off is refused although no picture is judged otherwise."""
    compared = Compared("a", 1)
    compared.against.add("x", "good", said(p=0.0), said(p=0.9))
    assert parity_of(compared).refusals("a", Allowed()) == ["a probability differs by 0.90 at batch 1"]
    assert parity_of(compared).refusals("a", Allowed(score=0.95)) == []


def test_a_gate_that_has_seen_too_little_promotes_nothing() -> None:
    """Few pictures, or of one kind only."""
    parity = Parity("cpu", compared=[Compared("cpu", 1), Compared("a", 1)])
    assert parity.refusals("a", Allowed()) == [
        "only 0 pictures: give 20 or more",
        "no picture that the reference judges OK: give good ones too",
        "no picture that the reference holds back: give defective ones too",
    ]
    assert not seen(parity).refusals("a", Allowed())


def test_flips_that_let_a_picture_through_are_shown_first() -> None:
    """And a picture once, whatever number of batch sizes it flipped at."""
    one, two = Compared("a", 1), Compared("a", 8)
    for compared in (one, two):
        compared.against.add("a.png", "good", said("OK"), said("NG", "pit"))
        compared.against.add("b.png", "pit", said("NG", "pit"), said("OK"))
    assert [flip.image for flip in worst_flips([one, two])] == ["b.png", "a.png"]


def test_the_card_holds_one_section_the_newest() -> None:
    """In place of the last one; what stands around it stays."""
    parity = parity_of(Compared("cpu-int8", 8))
    first = with_section("# Model\n\ntext\n", card_section(parity, {"cpu-int8": ["no"]}, []))
    assert "cpu-int8 refused: no" in first
    more = first.replace("# Model", "# Model\n\n## Before") + "\n## After\n\nlast\n"
    second = with_section(more, card_section(parity, {"cpu-int8": []}, []))
    assert "refused" not in second
    assert second.count("## Engines compared") == 1
    assert second.startswith("# Model\n\n## Before")
    assert second.endswith("\n## After\n\nlast\n")
    assert "cpu-int8 promoted" in second
