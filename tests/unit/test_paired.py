"""Two runs on the same reset states: what is decided, how surely, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

from wamkit.eval.suites.closed_loop import Record
from wamkit.eval.suites.paired import evidence, text
from wamkit.types import EvaluationError


def records(outcomes: dict[str, list[bool]]) -> list[Record]:
    return [Record(t, 1000 + i, "go", bool(y), 10, ()) for t, own in outcomes.items() for i, y in enumerate(own)]


def test_a_clear_difference_is_decided_and_said():
    first = records({"a": [False] * 12, "b": [True] * 12})
    second = records({"a": [True] * 12, "b": [True] * 12})
    r = evidence(("x", "y"), first, second)
    assert r.winner == "second" and r.episodes_left == 0 and r.difference == 0.5 and r.e > 20 and r.p_value < 0.05
    assert (r.tasks[0].second_only, r.tasks[0].first_only, r.tasks[1].second_only) == (12, 0, 0)
    assert r.tasks[0].p_value == pytest.approx(2 * 0.5**12 * 2) and r.tasks[1].p_value == 1
    assert "decided: the second is better" in text(r) and "+50.0 points" in text(r)


def test_a_small_difference_says_how_many_more():
    rng = np.random.default_rng(0)
    a = rng.random(20) < 0.5
    b = a.copy()
    b[np.flatnonzero(~a)[:3]] = True
    r = evidence(("x", "y"), records({"t": list(a)}), records({"t": list(b)}))
    assert r.winner is None and 5 < r.episodes_left < 200 and f"likely after {r.episodes_left} more pairs" in text(r)
    equal = evidence(("x", "y"), records({"t": list(a)}), records({"t": list(a)}))
    assert equal.e == 1 and equal.episodes_left is None and "nothing seen so far favours either run" in text(equal)


@pytest.mark.parametrize("outcome", [False, True])
def test_runs_that_never_differ_are_not_known_to_be_equal(outcome):
    """0 of 18 against 0 of 18, and 18 of 18 against 18 of 18, is not "+0.0 to +0.0"."""
    same = records({"t": [outcome] * 18})
    r = evidence(("x", "y"), same, same)
    assert r.difference == r.interval.value == 0 and r.interval.high == -r.interval.low > 0.1
    assert re.search(r"\+0\.0 points \[-1\d\.\d, \+1\d\.\d\]", text(r))


def test_swapping_the_runs_swaps_the_answer():
    a, b = records({"t": [True, False, True, True] * 5}), records({"t": [False, False, True, False] * 5})
    one, two = evidence(("x", "y"), a, b), evidence(("y", "x"), b, a)
    assert (
        one.difference == -two.difference and one.e == two.e and {one.winner, two.winner} <= {"first", "second", None}
    )
    assert (one.winner == "first") == (two.winner == "second")


def test_other_reset_states_are_refused():
    with pytest.raises(EvaluationError, match="not played from the same reset states"):
        evidence(("x", "y"), records({"t": [True]}), records({"t": [True, False]}))
    with pytest.raises(EvaluationError, match="there are none"):
        evidence(("x", "y"), [], [])
