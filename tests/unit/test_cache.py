"""Finished parts of an evaluation come back as they were, and damaged ones are made again."""

from __future__ import annotations

import math

import numpy as np

from wamkit.eval import cache as parts
from wamkit.eval.cache import cached
from wamkit.eval.results import ACTION, EvalResult, Row, Table, Worst
from wamkit.types import UNDEFINED, Interval

IMAGES = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)


def part() -> EvalResult:
    rows = (
        Row("a", "figure a", 0.5, Interval(0.5, 0.1, math.inf), None, ".0%", "m", "note"),
        Row("b", "figure b", math.nan, UNDEFINED),
    )
    return EvalResult(
        (Table("table", "title", "how", rows, ACTION),),
        (Worst(ACTION, "case", {"real": IMAGES, "made": IMAGES + 1}, 2.0),),
    )


def test_a_part_comes_back_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "made_by", lambda: {"wamkit": "1", "commit": "abc"})
    made = []

    def make() -> EvalResult:
        made.append(1)
        return part()

    first, again = (cached(tmp_path, "x", {"seed": 1}, make) for _ in range(2))
    assert len(made) == 1 and repr(again.tables) == repr(first.tables) == repr(part().tables)
    (case,) = again.worst
    assert (
        list(case.columns) == ["real", "made"] and np.array_equal(case.columns["made"], IMAGES + 1) and case.fps == 2.0
    )
    cached(tmp_path, "x", {"seed": 2}, make)
    assert len(made) == 2
    for file in (tmp_path / "parts").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    cached(tmp_path, "x", {"seed": 1}, make)
    assert len(made) == 3, "a damaged part is made again"


def test_what_uncommitted_code_made_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "made_by", lambda: {"wamkit": "1", "commit": "abc-dirty"})
    made = []
    for _ in range(2):
        cached(tmp_path, "x", {}, lambda: made.append(1) or part())
    assert len(made) == 2
