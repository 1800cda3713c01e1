"""The memory that training needs, compared with the machine's before anything is built."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wamkit.runs.recipes import RECIPES
from wamkit.training import memory
from wamkit.training.memory import check_memory, needed
from wamkit.types import Spec, WamkitError

SPEC = Spec(("scene",), 64, 64, 4, 4, point_grid=32)


def test_parts_are_those_of_the_model_and_the_batch():
    """Twice the rows need twice the memory for frames and activations, and none more for weights."""
    run = RECIPES.get("metaworld-unified")()
    one, two = (needed(replace(run, train=replace(run.train, batch_size=n)), SPEC) for n in (16, 32))
    assert one["frames"] == 16 * 3 * 3 * 64 * 64 * 5
    assert two == {**one, "frames": 2 * one["frames"], "activations": 2 * one["activations"]}
    single = needed(replace(run, train=replace(run.train, threads=1)), SPEC)
    assert single["weights and gradients"] * 5 == one["weights and gradients"] * 4  # a gradient a thread


@pytest.mark.parametrize(
    ("model", "train"), [({"width": 32768}, {}), ({}, {"batch_size": 65536}), ({"width": 16384, "depth": 512}, {})]
)
def test_more_than_the_machine_has_is_refused_at_once(monkeypatch, model, train):
    run = RECIPES.get("metaworld-unified")()
    check_memory(run, SPEC)
    monkeypatch.setattr(memory, "_host_limits", lambda: [8 * 10**9])
    run = replace(run, model=replace(run.model, **model), train=replace(run.train, **train))
    with pytest.raises(
        WamkitError, match=r"training needs at least .* GB of memory \(weights .*\), and cpu has 8.0 GB"
    ):
        check_memory(run, SPEC)


def test_every_recipe_for_two_cores_fits_into_two_gigabytes(monkeypatch):
    monkeypatch.setattr(memory, "_host_limits", lambda: [2 * 10**9])
    for name in RECIPES.names():
        run = RECIPES.get(name)()
        if not memory.is_pretrained(run):
            check_memory(run, replace(SPEC, past_offsets=run.window.past_offsets))
