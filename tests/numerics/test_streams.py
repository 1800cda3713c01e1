"""Attention masks: every program's transitive closure, and no leak in the outputs."""

from __future__ import annotations

import pytest
import torch

from wamkit.nn.attention_mask import ACTION, CONTEXT, FUTURE, Program, Segment, closure, visibility
from wamkit.nn.backbones.base import Tokens
from wamkit.nn.backbones.transformer import Trunk, attend

C, Z, ZC = Segment(CONTEXT, 3), Segment(FUTURE, 4), Segment(FUTURE, 4, clean=True)
A, AC = Segment(ACTION, 2), Segment(ACTION, 2, clean=True)
SEGMENTS = {"C": C, "Z": Z, "Zc": ZC, "A": A, "Ac": AC}

REACH = {  # what information can reach the noisy action and the noisy future, through any number of layers
    Program.JOINT: ({"C", "A", "Z"}, {"C", "A", "Z"}),
    Program.ACTION_NOISY_TO_VIDEO: ({"C", "A"}, {"C", "A", "Z"}),
    Program.VIDEO_NOISY_TO_ACTION: ({"C", "A", "Z"}, {"C", "Z"}),
    Program.DECOUPLED: ({"C", "A"}, {"C", "Z"}),
    Program.VIDEO_THEN_ACTION: ({"C", "A", "Zc"}, {"C", "Z"}),
    Program.ACTION_THEN_VIDEO: ({"C", "A"}, {"C", "Z", "Ac"}),
}


def spans() -> dict[str, slice]:
    out, start = {}, 0
    for name, segment in SEGMENTS.items():
        out[name] = slice(start, start + segment.length)
        start += segment.length
    return out


def output(trunk: Trunk, x: torch.Tensor, *args) -> torch.Tensor:
    """Outputs of a backbone for one run of tokens."""
    (y,), _ = trunk([Tokens(x, "any")], *args)
    return y


@pytest.mark.parametrize("program", list(Program))
def test_transitive_closure(program):
    reach = closure(visibility(list(SEGMENTS.values()), program))
    at = spans()
    for query, expected in zip(("A", "Z"), REACH[program], strict=True):
        assert {k for k in SEGMENTS if reach[at[query], at[k]].any()} == expected, query
    assert {k for k in SEGMENTS if reach[at["C"], at[k]].any()} == {"C"}


@pytest.mark.parametrize("program", list(Program))
def test_no_leak_in_numbers(program):
    """Perturbing what must be invisible leaves the outputs bit-equal, and perturbing what is visible does not."""
    torch.manual_seed(0)
    trunk = Trunk(32, 3, 2)
    segments = list(SEGMENTS.values())
    mask = visibility(segments, program)
    for p in trunk.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x = torch.randn(1, len(mask), 32)
    base = output(trunk, x, mask)
    for source, where in spans().items():
        moved = x.clone()
        moved[:, where] += 1.0
        out = output(trunk, moved, mask)
        for query, expected in zip(("A", "Z"), REACH[program], strict=True):
            assert torch.equal(out[:, spans()[query]], base[:, spans()[query]]) == (source not in expected), (
                source,
                query,
            )


def test_problems_share_the_context_alone():
    segments = [C, Segment(ACTION, 2, problem=0), Segment(FUTURE, 4, problem=1), Segment(ACTION, 2, problem=1)]
    mask = visibility(segments, Program.JOINT)
    assert not mask[3:5, 5:].any() and not mask[5:, 3:5].any()
    assert mask[:, :3].all() and mask[5:, 5:].all()


def test_attention_in_bfloat16_is_attention():
    """The explicit form for bfloat16 on a CPU equals torch's fused kernel, forward and backward."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 8, generator=g, requires_grad=True) for n in (5, 7, 7))
    mask = torch.rand(2, 1, 5, 7, generator=g) > 0.4
    mask[..., 0] = True
    bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    weight = torch.randn(2, 2, 5, 8, generator=g)
    exact = attend(q, k, v, bias)
    low = attend(*(x.bfloat16() for x in (q, k, v)), bias.bfloat16())
    torch.testing.assert_close(low.float(), exact, rtol=0.03, atol=0.03)
    a, b = (torch.autograd.grad((y.float() * weight).sum(), (q, k, v)) for y in (exact, low))
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(y, x, rtol=0.05, atol=0.06)


def test_cache_equals_no_cache():
    """The context's keys and values, computed once, serve later passes as if it were still in the sequence."""
    torch.manual_seed(0)
    trunk = Trunk(32, 3, 2)
    segments = [C, A, Z]
    mask = visibility(segments, Program.JOINT)
    for p in trunk.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x = torch.randn(2, 9, 32)
    whole = output(trunk, x, mask)
    _, cache = trunk([Tokens(x[:, :3], "context")])
    part = output(trunk, x[:, 3:], mask[3:], cache)
    torch.testing.assert_close(part, whole[:, 3:], rtol=1e-5, atol=1e-5)
