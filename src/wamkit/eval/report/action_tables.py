"""The action axis of a report: counterfactuals on and off the expert's path, what the model's own actions do, whether actions can be read
off its images, and whether the world goes as it imagined."""

from __future__ import annotations

import numpy as np

from wamkit.data.loading.windows import Frames
from wamkit.envs.spec import EnvSpec
from wamkit.eval.cache import EvalResult
from wamkit.eval.metrics.image import TAU
from wamkit.eval.metrics.intervals import bootstrap_ratio
from wamkit.eval.probes.inverse_dynamics import action_recoverability, train_inverse
from wamkit.eval.results import ACTION, Row, Table, Worst
from wamkit.eval.suites.action_fidelity import ActionScore, imagined_by, score
from wamkit.eval.suites.closed_loop import Protocol
from wamkit.eval.suites.counterfactuals import Counterfactuals, counterfactuals
from wamkit.eval.suites.forecast_consistency import foreseen, foretelling
from wamkit.eval.suites.forecast_vs_execution import (
    Execution,
    ExecutionScore,
    execution_score,
    execution_videos,
    executions,
)
from wamkit.inference.model import Model
from wamkit.runs.run import Run
from wamkit.types import Interval, Query
from wamkit.viz.images import difference


def action_part(run: Run, model: Model, env: EnvSpec, *, episodes: int = 6, processes: int = 2) -> EvalResult:
    """Of the queries that `model` knows: one table for forward dynamics, one for actions given with a future; and their worst cases."""
    tables: list[Table] = []
    worst: list[Worst] = []
    if Query.FORWARD in model.queries:
        states, ask = counterfactuals(env, model.spec, episodes=episodes, processes=processes), imagined_by(model)
        made: list[tuple[Counterfactuals, np.ndarray]] = []

        def imagine(state: Counterfactuals) -> np.ndarray:
            made.append((state, ask(state)))
            return made[-1][1]

        rows: list[Row] = []
        for kind, expert in (("expert", True), ("off_expert", False)):
            rows += _counterfactual(kind, score([s.only(expert) for s in states], imagine))
        how = (
            f"{len(states)} states of {len(env.tasks)} tasks, from each of which the simulator carries out several chunks and the model "
            "imagines them, with one noise. Measured on pixels that move in any of them."
        )
        tables.append(Table("counterfactuals", "Does it imagine what its actions do?", how, tuple(rows), ACTION))
        worst += _worst_branches(made)
    if {Query.JOINT, Query.POLICY} & model.queries:
        found = executions(run, env, episodes=max(1, episodes // 2), processes=processes)
        how = (
            f"{len(found)} states of experts' episodes: its actions are carried out, and what it imagined, what came of it and what the expert "
            "did are compared. 1 is the same image, 0 as far as one in which nothing moves."
        )
        tables.append(
            Table(
                "forecast_vs_execution",
                "The video, the arm, or both?",
                how,
                tuple(_execution(execution_score(found))),
                ACTION,
            )
        )
        worst += _worst_executions(found)
    return EvalResult(tuple(tables), tuple(worst))


def inverse_table(model: Model, frames: Frames, others: Frames) -> Table:
    """Actions read off imagined images of `frames` by an inverse dynamics model that learned from `others`."""
    steps = max(50, min(600, len(others) // 8))  # of 64 windows: eight times each, a minute at most
    found = action_recoverability(model, train_inverse(others, model.spec, steps=steps), frames)
    rows = []
    for key, name, top, bottom, note in (
        ("floor", "floor: real frames / another window's actions", "real", "shuffled", "below 1 it can read at all"),
        ("forward", "imagined for given actions / real", "forward", "real", "1 is as readable as reality"),
        ("joint", "imagined along with its actions / real", "joint", "real", "the actions that it gave itself"),
    ):
        ratio = found.over(top, bottom)
        if not ratio.undefined:
            rows.append(Row(key, name, ratio.value, ratio, fmt=".3f", note=note))
    r2 = ", ".join(f"{x:.2f}" for x in found.r2)
    how = (
        f"An inverse dynamics model that shares nothing with this one: other recordings, other weights, other layers. Of real images it reads "
        f"R2 = {r2} of each action number. Ratios of squared errors; intervals resample episodes."
    )
    return Table("action_recoverability", "Can actions be read off its frames?", how, tuple(rows), ACTION)


def foresight_table(run: Run, protocol: Protocol, processes: int = 2) -> Table:
    """What came of what it imagined while it acted, and whether that foretells success."""
    episodes = foreseen(run, protocol, processes=processes)
    told, tasks = foretelling(episodes), [f"{e.task} {e.seed}" for e in episodes]
    error, motion = (np.array([getattr(e, k).sum() for e in episodes]) for k in ("error", "motion"))
    rows = []
    if motion.sum():
        r = bootstrap_ratio(error, motion, np.unique(tasks, return_inverse=True)[1], seed=0)
        note = f"of what is seen {protocol.replan_every} steps later; 1 is foreseen exactly, 0 as if nothing would move"
        skill = Interval(1 - r.value, 1 - r.high, 1 - r.low, r.level)
        rows.append(
            Row("skill", "skill of its forecast", skill.value, skill, "above 0", skill.low > 0, ".3f", note=note)
        )
    for key, name, x, note in (
        (
            "auc.skill",
            "success predicted by the forecast",
            told.skill,
            "area under the ROC curve within tasks; 0.5 is a guess",
        ),
        ("auc.motion", "success predicted by motion alone", told.motion, "the competitor that imagines nothing"),
    ):
        if not x.undefined:
            rows.append(Row(key, name, x.value, x, fmt=".2f", note=note))
    how = f"{told.episodes} episodes in which it acts on the query `joint`; {told.failures} failed."
    how += " Too few of one outcome for it to be foretold." if told.skill.undefined else ""
    return Table("forecast_consistency", "Does the world go as it imagined?", how, tuple(rows), ACTION)


def _counterfactual(kind: str, s: ActionScore) -> list[Row]:
    """Rows of the branches of one kind, `expert` or `off_expert`; figures without a case are left out."""
    label = {"expert": "expert's chunks", "off_expert": "other actions"}[kind]
    positive = lambda x: x.low > 0  # noqa: E731
    chance = f"of {s.branches:.0f}; chance is {s.chance:.0%}"
    blind = "0 is best, 1 is choosing blindly"
    figures = [
        ("identified", "identification accuracy", "above chance", lambda x: x.low > s.chance, ".0%", chance),
        ("skill", "skill over copying", "above 0", positive, ".3f", "1 is perfect"),
        ("regret", "regret of choosing by imagination", "below 1", lambda x: x.high < 1, ".3f", blind),
    ]
    if kind == "off_expert":
        figures += [
            ("direction", "direction", "above 0", positive, ".3f", "cosine to what the action changes"),
            ("gain", "gain", "", None, ".3f", "1 is right, less is too little"),
            ("drift", "drift when nothing is done", "", None, ".3f", "over what actions change; 0 is best"),
        ]
    rows = []
    for key, name, target, met, fmt, note in figures:
        if not (x := getattr(s, key)).undefined:
            passed = met(x) if met else None
            rows.append(Row(f"{kind}.{key}", f"{label}: {name}", x.value, x, target, passed, fmt, note=note))
    return rows


def _execution(s: ExecutionScore) -> list[Row]:
    said = (
        ("forecast", s.forecast, "imagined against what the expert did"),
        ("policy", s.policy, "what its actions do against what the expert did"),
        ("consistency", s.consistency, "imagined against what its actions do"),
    )
    return [Row(name, name, x.value, x, fmt=".3f", note=note) for name, x, note in said if not x.undefined]


def _worst_branches(made: list[tuple[Counterfactuals, np.ndarray]], count: int = 2) -> list[Worst]:
    """The branches that are imagined worst, by squared error on what moves, one a task at most."""
    found = []
    for i, (state, imagined) in enumerate(made):
        real, now = state.future.astype(np.float32), state.obs.images.astype(np.float32)
        moves = (np.abs(real - now) > 255 * TAU).any(0)
        error = (np.square(imagined - real) * moves).sum(tuple(range(1, real.ndim)))
        found += [(float(e), i, k) for k, e in enumerate(error)]
    out: dict[str, Worst] = {}
    for _, i, k in sorted(found, reverse=True):
        state, imagined = made[i]
        if state.task in out:
            continue
        now = state.obs.images[None, 0]
        real, guess = (np.concatenate([now, x[k, :, 0]]) for x in (state.future, imagined))
        columns = {"what the action does": real, "imagined": guess, "difference": difference(real, guess)}
        title, note = f"{state.task}: action '{state.names[k]}'", f"seed {state.seed}, from step {state.step} on"
        out[state.task] = Worst(ACTION, title, columns, 1.5, note)
        if len(out) == count:
            break
    return list(out.values())


def _worst_executions(found: list[Execution], count: int = 1) -> list[Worst]:
    """The episodes in which what its actions do is furthest from what it imagined or, where it imagines nothing, from the expert."""
    episodes: dict[tuple[str, int], list[Execution]] = {}
    for e in found:
        episodes.setdefault((e.task, e.seed), []).append(e)
    scores = {k: execution_score(v) for k, v in episodes.items()}
    skill = {k: (s.policy if s.consistency.undefined else s.consistency).value for k, s in scores.items()}
    worst = sorted((v, k) for k, v in skill.items() if not np.isnan(v))[:count]
    return [
        Worst(
            ACTION,
            f"{task}: its own actions",
            execution_videos(episodes[task, seed]),
            3.0,
            f"seed {seed}, skill {value:.2f}",
        )
        for value, (task, seed) in worst
    ]
