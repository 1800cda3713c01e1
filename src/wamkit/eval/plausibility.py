"""The action axis of a report: counterfactuals on and off the expert's path, and what the model's own actions do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wamkit.eval.action import ActionScore, imagined_by, score
from wamkit.eval.branches import World, counterfactuals
from wamkit.eval.execution import ExecutionScore, execution_score, executions
from wamkit.eval.report import Row, Table
from wamkit.eval.stats import Interval
from wamkit.family import Family
from wamkit.types import Query


def action_tables(
    run: str | Path, model: Family, world: World, *, robot: str = "", episodes: int = 6, processes: int = 2
) -> list[Table]:
    """Of the queries that `model` knows: one table for forward dynamics, one for actions given with a future."""
    tables = []
    if Query.FORWARD in model.queries:
        states, imagine = counterfactuals(world, episodes=episodes, processes=processes), imagined_by(model)
        rows: list[Row] = []
        for kind, expert in (("expert's chunks", True), ("other actions", False)):
            rows += _counterfactual(kind, score([s.only(expert) for s in states], imagine), expert)
        how = (
            f"{len(states)} states of {len(world.tasks)} tasks, from each of which the simulator carries out several chunks and the model "
            "imagines them, with one noise. Measured on pixels that move in any of them."
        )
        tables.append(Table("Does it imagine what its actions do?", how, tuple(rows)))
    if {Query.JOINT, Query.POLICY} & model.queries:
        found = executions(run, world, robot=robot, episodes=max(1, episodes // 2), processes=processes)
        how = (
            f"{len(found)} states of experts' episodes: its actions are carried out, and what it imagined, what came of it and what the expert "
            "did are compared. 1 is the same picture, 0 as far as one in which nothing moves."
        )
        tables.append(Table("The video, the arm, or both?", how, tuple(_execution(execution_score(found)))))
    return tables


def _counterfactual(kind: str, s: ActionScore, expert: bool) -> list[Row]:
    def row(
        name: str, x: Interval, target: str, met: Callable[[Interval], bool] | None, fmt: str, note: str
    ) -> list[Row]:
        if x.undefined:
            return []
        return [Row(f"{kind}: {name}", x.value, x, target, met(x) if met else None, fmt, note=note)]

    chance = f"of {s.branches:.0f}; chance is {s.chance:.0%}"
    rows = row("told apart", s.identified, "above chance", lambda x: x.low > s.chance, ".0%", chance)
    rows += row("skill over copying", s.skill, "above 0", lambda x: x.low > 0, ".3f", "1 is perfect")
    rows += row(
        "regret of choosing by imagination",
        s.regret,
        "below 1",
        lambda x: x.high < 1,
        ".3f",
        "0 is best, 1 is choosing blindly",
    )
    if not expert:
        rows += row(
            "direction", s.direction, "above 0", lambda x: x.low > 0, ".3f", "cosine to what the action changes"
        )
        rows += row("gain", s.gain, "", None, ".3f", "1 is right, less is too little")
        rows += row("drift when nothing is done", s.drift, "", None, ".3f", "over what actions change; 0 is best")
    return rows


def _execution(s: ExecutionScore) -> list[Row]:
    said = (
        ("forecast", s.forecast, "imagined against what the expert did"),
        ("policy", s.policy, "what its actions do against what the expert did"),
        ("consistency", s.consistency, "imagined against what its actions do"),
    )
    return [Row(name, x.value, x, fmt=".3f", note=note) for name, x, note in said if not x.undefined]
