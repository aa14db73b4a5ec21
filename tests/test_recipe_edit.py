"""Numbers put into a recipe's text: everything else stands, or it is said what to set by hand."""

from __future__ import annotations

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe_edit import with_values


def test_numbers_are_set_and_the_rest_stands() -> None:
    """Comments, order and unknown lines stay; a missing key or table is added."""
    text = 'name = "r" # mine\n[classifier]\nthreshold = 0.7   # old reason\n\n[judge]\nmin_score = 0.8\n\n[batching]\n'
    edited = with_values(text, {"classifier": {"threshold": 0.25}, "judge": {"min_score": 0.5, "min_area_px": 20}})
    assert edited == (
        'name = "r" # mine\n[classifier]\nthreshold = 0.25   # old reason\n\n'
        "[judge]\nmin_score = 0.5\nmin_area_px = 20\n\n[batching]\n"
    )
    assert with_values('name = "r"', {"judge": {"ng_above": 1.01}}) == 'name = "r"\n\n[judge]\nng_above = 1.01\n'
    assert (
        with_values("[judge]\r\nmin_score = 1\r\n", {"judge": {"min_score": 0.5}}) == "[judge]\r\nmin_score = 0.5\r\n"
    )


@pytest.mark.parametrize("text", ["judge = {min_score = 0.8}\n", "judge.min_score = 0.8\n", "no toml"])
def test_recipe_of_another_form_is_left_alone(text: str) -> None:
    """It is said what to set by hand."""
    with pytest.raises(RecipeError, match=r"set by hand: judge.min_score = 0.5"):
        with_values(text, {"judge": {"min_score": 0.5}})
