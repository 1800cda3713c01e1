"""Attention masks: a token sequence is a list of segments, and the visibility between them is data.

A segment is a run of tokens of one stream (context, future, action), clean or noisy, belonging to one training problem.
Problems share the context and never see each other, so one sequence can hold several training problems about one
observation.
The context never sees what is generated: attention composes over layers, and anything it saw would leak to everyone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool
from torch import Tensor

from wamkit.nn.options import Program

CONTEXT, TEXT, FUTURE, ACTION = "context", "text", "future", "action"


TEACHER_FORCED = {Program.VIDEO_THEN_ACTION: FUTURE, Program.ACTION_THEN_VIDEO: ACTION}
"""The first stream in programs of two steps: training shows its clean tokens to the other one."""


def sees_other(program: Program, query: str, key: str) -> bool:
    """True if tokens of the noisy stream `query` may attend to the stream `key`, noisy or clean, under `program`."""
    return any(sees(Segment(query, 1), Segment(key, 1, clean), program) for clean in (False, True))


@dataclass(frozen=True)
class Segment:
    """`length` tokens of one stream.

    clean: teacher-forced tokens, without noise.
    problem: the training problem that they belong to.
    moment: steps from now to the observation, where moments of the context are read apart (`nn.history`).
    """

    stream: str
    length: int
    clean: bool = False
    problem: int = 0
    moment: int = 0


_CONTEXT = (CONTEXT, TEXT)


def sees(query: Segment, key: Segment, program: Program) -> bool:
    """True if tokens of `query` may attend to tokens of `key`."""
    if query.stream in _CONTEXT:
        return (query.stream, query.moment) == (key.stream, key.moment)
    if key.stream in _CONTEXT:
        return True
    if query.problem != key.problem:
        return False
    if query.stream == key.stream:
        return query.clean == key.clean
    if query.clean:
        return False
    pair = (query.stream, key.stream, key.clean)
    allowed = {
        Program.JOINT: {(ACTION, FUTURE, False), (FUTURE, ACTION, False)},
        Program.ACTION_NOISY_TO_VIDEO: {(FUTURE, ACTION, False)},
        Program.VIDEO_NOISY_TO_ACTION: {(ACTION, FUTURE, False)},
        Program.DECOUPLED: set(),
        Program.VIDEO_THEN_ACTION: {(ACTION, FUTURE, True)},
        Program.ACTION_THEN_VIDEO: {(FUTURE, ACTION, True)},
    }
    return pair in allowed[program]


def visibility(segments: Sequence[Segment], program: Program = Program.JOINT) -> Bool[Tensor, "L K"]:
    """The mask of tokens: true where the query (row) may attend to the key (column).

    Do not change it in place: it is cached, since every denoising step asks for it.

    Examples:
        >>> segments = [Segment(CONTEXT, 1), Segment(FUTURE, 1), Segment(ACTION, 1)]
        >>> visibility(segments, Program.VIDEO_NOISY_TO_ACTION).int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    return _visibility(tuple(segments), program)


@lru_cache(maxsize=64)
def _visibility(segments: tuple[Segment, ...], program: Program) -> Tensor:
    return expand(table(segments, program), segments)


def table(segments: Sequence[Segment], program: Program = Program.JOINT) -> Bool[Tensor, "S S"]:
    """The mask of segments: true where the row's segment may attend to the column's."""
    return torch.tensor([[sees(q, k, program) for k in segments] for q in segments], device="cpu")


def expand(table_SS: Bool[Tensor, "S S"], segments: Sequence[Segment]) -> Bool[Tensor, "L L"]:
    """A table of segments as a mask of tokens."""
    lengths = torch.tensor([s.length for s in segments], device="cpu")
    index = torch.repeat_interleave(torch.arange(len(segments), device="cpu"), lengths)
    return table_SS[index][:, index]


def in_order(segments: Sequence[Segment]) -> Bool[Tensor, "L L"]:
    """The causal mask inside segments: false where a token would attend to a later one, except in context."""
    index = torch.repeat_interleave(torch.arange(len(segments)), torch.tensor([s.length for s in segments]))
    known = torch.tensor([s.stream == CONTEXT for s in segments])[index]
    return (index.unsqueeze(1) != index) | known | torch.ones(len(index), len(index), dtype=torch.bool).tril()


def closure(mask_LK: Bool[Tensor, "L K"]) -> Bool[Tensor, "L K"]:
    """The transitive closure of a square mask: true where information passes through any number of layers."""
    reach = mask_LK | torch.eye(len(mask_LK), dtype=torch.bool)
    while True:
        further = (reach.float() @ reach.float()) > 0
        if torch.equal(further, reach):
            return reach
        reach = further
