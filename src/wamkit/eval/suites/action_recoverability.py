"""Action recoverability: are the actions visible in the imagined frames? See `probes.inverse_dynamics`."""

from __future__ import annotations

from math import isnan

from wamkit.data.loading.windows import Frames
from wamkit.eval.probes.inverse_dynamics import action_recoverability, train_inverse
from wamkit.eval.registry import EVALUATIONS, Context, Evaluation
from wamkit.eval.results import ACTION, EvalResult, Row, Table
from wamkit.inference.model import Model
from wamkit.types import Query


def recoverability_table(model: Model, frames: Frames, others: Frames) -> Table:
    """Errors of actions that a probe, trained on `others`, reads off the frames that `model` imagines for `frames`."""
    steps = max(50, min(600, len(others) // 8))  # of 64 windows: eight times each, a minute at most
    found = action_recoverability(model, train_inverse(others, model.spec, steps=steps, robot=model.embodiment), frames)
    rows = []
    for key, name, top, bottom, note in (
        ("floor", "floor: real frames / another window's actions", "real", "shuffled", "below 1 it can read at all"),
        ("forward", "imagined for given actions / real", "forward", "real", "1 is as readable as reality"),
        ("joint", "imagined along with its actions / real", "joint", "real", "the actions that it gave itself"),
    ):
        ratio = found.over(top, bottom)
        if not ratio.undefined:
            rows.append(Row(key, name, ratio.value, ratio, fmt=".3f", note=note))
    r2 = ", ".join("-" if isnan(x) else f"{x:.2f}" for x in found.r2)
    how = (
        "An inverse dynamics model that shares nothing with this one: other episodes, other weights, other layers. On "
        f"real frames it reads R2 = {r2} of each action value. Ratios of squared errors; intervals resample episodes."
    )
    return Table("action_recoverability", "Can actions be read off its frames?", how, tuple(rows), ACTION)


@EVALUATIONS.register("action_recoverability")
class ActionsFromFrames(Evaluation):
    """Errors of actions that are read off imagined frames."""

    suite, order = "full", 70

    def needs(self, context: Context) -> bool:
        return not context.model.queries.isdisjoint((Query.FORWARD, Query.JOINT))

    def run(self, context: Context) -> EvalResult:
        others = context.record(2 * context.options.held_out, seed=1)
        return EvalResult((recoverability_table(context.model, context.frames, others),))
