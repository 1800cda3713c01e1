"""What `wamkit show` says of a family."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from wamkit.cli.list import families_by, taxonomy_page
from wamkit.cli.show import model_of
from wamkit.families.base import FAMILIES
from wamkit.runs.recipes import RECIPES
from wamkit.types import WamkitError
from wamkit.viz.family_page import NONE, layout_file, text


@pytest.mark.parametrize("name", [*FAMILIES.names(), *RECIPES.names()])
def test_shows_every_family_and_recipe(name):
    model = model_of(name)
    page, (segments, seen) = text(model), model.attention_layout()
    assert model.taxonomy.leaf in page and all(q in page for q in model.queries)
    assert f"{sum(p.numel() for p in model.parameters()):,}" in page
    assert page.count("■") == int(seen.sum()) and page.count("·") == int((~seen).sum())
    assert sum(s.length for s in segments) > 0


def test_the_picture_has_a_square_for_each_pair():
    model = model_of("unified")
    root = ET.fromstring(layout_file(model))
    squares = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if e.get("rx")]
    _, seen = model.attention_layout()
    assert len(squares) == seen.numel() and sum(e.get("fill") != NONE for e in squares) == int(seen.sum())


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(
        WamkitError,
        match=r"'unifed' is no family, recipe or run folder \(did you mean 'unified'\?\); families: .*unified",
    ):
        model_of("unifed")


def test_the_taxonomy_page_is_up_to_date():
    """After a family changed: make docs/taxonomy.md"""
    assert (Path(__file__).parents[2] / "docs" / "taxonomy.md").read_text() == taxonomy_page()


def test_families_grouped_by_axis():
    assert set(sum(families_by("decoder").values(), [])) == set(FAMILIES.names())
    assert "bc" in families_by("leaf")["control"]
    with pytest.raises(WamkitError, match=r"no axis 'decodr' \(did you mean 'decoder'\?\)"):
        families_by("decodr")
