"""`smoothness`: an evaluation in a package of its own. `wamkit eval` finds it and adds its table to the page.

docs/evaluation.md describes evaluations.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from wamkit.data.loading.windows import Windows
from wamkit.eval.metrics.intervals import bootstrap_ratio
from wamkit.eval.queries import query_windows, whole_windows, window_seeds
from wamkit.eval.registry import EVALUATIONS, Context, Evaluation
from wamkit.eval.results import ACTION, EvalResult, Row, Table
from wamkit.types import Query


def change_per_step(chunks: Float[np.ndarray, "N A a"]) -> Float[np.ndarray, " N"]:
    """Mean absolute change of an action value from step to step, in the robot's units. At least 0, 0 is constant.

    Blind to the direction of a change: a steady ramp and a jitter of the same size score the same.
    """
    return np.abs(np.diff(chunks, axis=1)).mean((1, 2))


@EVALUATIONS.register("smoothness")
class Smoothness(Evaluation):
    """Change of actions from step to step within a chunk, beside that of the executed actions."""

    def needs(self, context: Context) -> bool:
        return Query.POLICY in context.model.queries

    def run(self, context: Context) -> EvalResult:
        model, frames = context.model, context.frames
        starts = whole_windows(frames, model.spec, stride=8)
        windows = Windows(frames, model.spec, seed=0, batch_size=1).gather(starts)
        answer = query_windows(model, windows, Query.POLICY, window_seeds(starts))
        own, executed = (change_per_step(x) for x in (answer.actions, windows.action.numpy()))
        change = bootstrap_ratio(own, np.ones(len(own)), frames.episode[starts], seed=0)
        note = f"executed actions: {executed.mean():.3f}; {len(starts)} chunks"
        row = Row("change", "change of an action value per step", change.value, change, fmt=".3f", note=note)
        how = "Mean absolute change within a chunk of a policy query, in the robot's units; 0 is constant."
        return EvalResult((Table("smoothness", "How smooth are its actions?", how, (row,), ACTION),))
