"""The documentation and the code say the same."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tool(name: str):
    """A script of tools/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FIGURES = tool("figures").FIGURES


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_what_the_code_draws(name):
    assert (ROOT / "docs/figures" / name).read_text() == FIGURES[name](), "python tools/figures.py draws it again"


def test_the_attention_figure_shows_each_programs_mask():
    from wamkit.nn.attention_mask import Program, visibility

    figures = tool("figures")
    for program in Program:
        drawn = "\n".join(figures.matrix(program, 0, 0))
        mask = visibility(figures.sequence(program), program)
        assert drawn.count('rect class="none"') == int((~mask).sum())
        assert drawn.count("<rect") == mask.numel()
