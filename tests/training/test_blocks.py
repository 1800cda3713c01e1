"""Blocks that are compiled, and that compute activations again."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
from functools import partial

import pytest
import torch
from small_runs import SMALL, small_model, state, trainer

from wamkit.training.blocks import Forward, change_blocks

COMPILED = {"compile": True, "device": "cpu:0"}
LONG = pytest.mark.skipif(
    not os.environ.get("WAMKIT_LONG_TESTS") or not shutil.which("g++"),
    reason="compiles C++ for twenty seconds: set WAMKIT_LONG_TESTS=1",
)


@pytest.mark.parametrize(
    ("changes", "backend"),
    [
        ({"checkpoint_activations": True}, ""),
        (COMPILED, "aot_eager"),  # traced, and run by PyTorch's own kernels
        pytest.param(COMPILED, "inductor", marks=LONG),
    ],
)
def test_a_run_learns_the_same_but_for_rounding(tmp_path, monkeypatch, changes, backend):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain = {k: v for k, v in changes.items() if k == "device"}
    for name, options in (("plain", plain), ("changed", changes)):
        trainer(tmp_path / name, dataclasses.replace(SMALL, steps=4, **options), "bc").run()
    a, b = state(tmp_path / "plain"), state(tmp_path / "changed")
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-3, atol=1e-5)
    assert "compile" in changes or all(torch.equal(a[k], b[k]) for k in a)


def test_a_copy_computes_with_its_own_weights():
    """Averages are served by a copy, and frozen targets are copies: neither may compute with the model's weights."""
    model = small_model()
    change_blocks(model, dataclasses.replace(SMALL, compile=True, checkpoint_activations=True))
    block, copied = model.blocks()[0], copy.deepcopy(model).blocks()[0]
    assert isinstance(block.forward, Forward)
    assert copied.forward.__self__ is copied and copied.forward.__func__ is type(block).forward
