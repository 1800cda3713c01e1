"""Four kinds of conditioning: the same backbone, the same queries, and the attention layout holds in all."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_families import ask, losses, make

from wamkit.experiments.run import trunk_size
from wamkit.nn.attention_mask import Program
from wamkit.types import Query

KINDS = ("prefix", "channel", "cross", "adaln")


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_the_context_is_heard(kind, spec, normalizer, batch):
    model = make("unified", spec, normalizer, conditioning=kind)
    far = dataclasses.replace(batch, proprio=batch.proprio + 1)
    other = dataclasses.replace(batch, text=["lift the cup"] * len(batch))
    dark = dataclasses.replace(batch, obs=255 - batch.obs)
    for query in Query:
        answer = ask(model, query, batch)
        for changed in (far, other, dark):
            again = ask(model, query, changed)
            for a, b in ((answer.actions, again.actions), (answer.future, again.future)):
                assert a is None or not np.array_equal(a, b), (query, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_hides_what_it_hides(kind, spec, normalizer, batch):
    """Under `decoupled` neither the loss of actions nor that of frames depends on the other stream."""
    model = make("unified", spec, normalizer, conditioning=kind, program=Program.DECOUPLED)
    dark = dataclasses.replace(batch, future=255 - batch.future)
    a, b = losses(model, batch), losses(model, dark)
    assert torch.equal(a["policy"], b["policy"]) and torch.equal(a["action"], b["action"])
    assert not torch.equal(a["future"], b["future"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_trunk_is_the_same_and_all_of_it_learns(kind, spec, normalizer, batch):
    model = make("unified", spec, normalizer, conditioning=kind)
    assert trunk_size(model) == trunk_size(make("unified", spec, normalizer))
    total = sum(v.sum() for v in losses(model, batch).values())
    names, params = zip(*((n, p) for n, p in model.named_parameters() if "codec" not in n), strict=True)
    grads = torch.autograd.grad(total, params, allow_unused=True)
    assert [n for n, g in zip(names, grads, strict=True) if g is None or not g.abs().sum()] == []
