"""The whole evaluation of a run: closed loop and imagination on held-out states, summarised in JSON and one HTML page."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from wamkit.config import check_bounds, without_nan
from wamkit.data.loading.windows import Frames
from wamkit.envs import ENVIRONMENTS
from wamkit.envs.base import held_out_seeds
from wamkit.eval.cache import EvalResult, cached
from wamkit.eval.held_out import World, validation_frames
from wamkit.eval.report.action_tables import action_part, foresight_table, inverse_table
from wamkit.eval.report.card import PICTURED, history, report_card, worst_pictures
from wamkit.eval.report.page import write_report
from wamkit.eval.report.tables import coupling_table, fidelity_table, json_row, success_table, text_table
from wamkit.eval.results import Worst, made_by
from wamkit.eval.suites.clip_distribution import ClipSet, clip_set, resemblance_table
from wamkit.eval.suites.closed_loop import Protocol, closed_loop, write_records
from wamkit.eval.suites.counterfactuals import Setting
from wamkit.eval.suites.open_loop import imagine
from wamkit.eval.suites.physics import commonsense, physics_tables, worst_continuations
from wamkit.eval.suites.pretrained_features import Encoders, encoder_table, named_encoders
from wamkit.files import atomic_write
from wamkit.inference.model import Model, load
from wamkit.inference.policy import Policy
from wamkit.runs.checkpoint import load_checkpoint, weights_hash
from wamkit.types import Query, WamkitError


def evaluate(
    run: Path,
    *,
    episodes: int = 20,
    replan_every: int = 8,
    steps: int | None = None,
    query: str = "policy",
    held_out: int = 6,
    processes: int = 2,
    recordings: Path | None = None,
    report: bool = True,
    world: World | None = None,
    suite: Literal["main", "full"] = "main",
    encoders: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluates `run`, writes run/eval/{summary.json, episodes.parquet, report.html}, prints the table, returns the summary.

    A model that gives no actions is not played in closed loop. world: where to evaluate, if not in the environment that the data came
    from; what is written goes to run/eval/<its name> then. suite: `full` adds whether its clips resemble real ones, the laws of physics,
    counterfactuals, and what its own actions do. encoders: pretrained ones whose figures are wanted too, see `named_encoders`.
    held_out: recordings a task on which imagination is scored; with 0, and where no scripted expert records any, closed loop alone.

    recordings: a folder where several runs on the same data share their held-out recordings.   report: whether to write
    the page. Every part is kept when it is done, so that an evaluation which was cut short continues. Raises WamkitError, before
    any work starts, for an argument that is out of range, a query that the model doesn't know, or a damaged run.
    """
    check_bounds(SimpleNamespace(held_out=held_out, processes=processes), held_out=(0, inf), processes=(1, inf))
    robot, out = (world.robot, run / "eval" / (world.protocol or world.env)) if world else ("", run / "eval")
    model, saved = load(run, embodiment=robot or None), load_checkpoint(run)
    if model.embodiment is None and (robots := saved.config.get("robots")):
        raise WamkitError(
            f"{run} knows several robots; say where and which one acts: --env NAME --robot {'|'.join(robots)}"
        )
    source = world.source(saved.config["source"]) if world else saved.config["source"]
    options = tuple(source["options"].items())
    protocol = Protocol(
        source["env"], tuple(source["tasks"]), options, episodes, replan_every, query, steps, robot=robot
    )
    acts = any(q in model.queries for q in (Query.POLICY, Query.JOINT))
    if not held_out and (suite == "full" or not acts):
        raise WamkitError(
            "held_out = 0 leaves closed loop alone: the full suite, and a model that gives no actions, need recordings"
        )
    if acts:
        Policy(model, replan_every=replan_every, query=query)
    seen_by = named_encoders(encoders)
    _check_encoders(seen_by, model, held_out * len(source["tasks"]))
    learning = history(run)
    if shared := set(held_out_seeds(episodes)) & set(source["seeds"]):
        raise WamkitError(f"the evaluation seeds {sorted(shared)[:5]} were trained on")
    frames = validation_frames(run, {"source": source}, held_out, processes, recordings or out) if held_out else None
    records = closed_loop(run, protocol, processes=processes) if acts else []
    if acts:
        write_records(records, out / "episodes.parquet")
    tables = [success_table(records, world.note if world else "")] if acts else []
    pictured = frames is not None and not model.queries.isdisjoint(PICTURED)
    worst: list[Worst] = []
    if frames is not None:
        result = imagine(model, frames, steps=steps)
        tables += [fidelity_table(model, result), coupling_table(result)]
        worst += worst_pictures(model, frames, result) if pictured else []
    for part in _parts(
        run, model, source, protocol, frames, held_out, processes, recordings or out, out, suite, seen_by
    ):
        tables += part.tables
        worst += part.worst
    tables = [t for t in tables if t.rows]
    summary = {
        "run": str(run),
        "family": model.name,
        "step": saved.step,
        "training_seconds": saved.extra.get("elapsed_s"),
        "weights": weights_hash(run),
        "protocol": asdict(protocol)
        | {"seeds": held_out_seeds(episodes), "held_out": held_out, "suite": suite, "encoders": seen_by.names}
        | ({"name": world.protocol} if world and world.protocol else {}),
        "made_by": made_by(),
        "rows": [json_row(t, r) for t in tables for r in t.rows],
    }
    atomic_write(out / "summary.json", (json.dumps(without_nan(summary), indent=2) + "\n").encode())
    print(text_table(tables))
    if report:
        page = report_card(
            run, model, saved, source, learning, protocol, records, frames, tables, worst, processes, world
        )
        print(f"report: {write_report(page, out / 'report.html')}")
    return summary


def _check_encoders(encoders: Encoders, model: Model, demonstrations: int) -> None:
    """That there is something for them to see. Raises WamkitError before any work is done."""
    if not encoders.names:
        return
    if model.queries.isdisjoint(PICTURED):
        raise WamkitError(f"encoders look at imagined pictures, and {model.name} imagines none")
    least = 4 if encoders.videos else 1
    if demonstrations < least:
        raise WamkitError(f"these encoders need {least} held-out recordings or more, not {demonstrations}")
    for encoder in encoders.videos:
        if (shown := 1 + len(model.spec.frame_offsets)) < encoder.least:
            raise WamkitError(
                f"{encoder.name} sees clips of {encoder.least} frames or more, and this model imagines clips of {shown}"
            )


def _parts(
    run: Path,
    model: Model,
    source: Mapping[str, Any],
    protocol: Protocol,
    frames: Frames | None,
    held_out: int,
    processes: int,
    recordings: Path,
    out: Path,
    suite: str,
    encoders: Encoders,
) -> Iterator[EvalResult]:
    """What encoders and `full` add, part by part, each kept in `out` when it is done."""
    if frames is None:
        return
    pictured = not model.queries.isdisjoint(PICTURED)
    key = {"weights": weights_hash(run), "source": source, "protocol": asdict(protocol), "held_out": held_out}
    setting = Setting.of(source, model.spec)

    @functools.cache
    def clips() -> ClipSet:
        return clip_set(model, frames)

    def seen() -> EvalResult:
        c = clips()
        table = encoder_table(c.current, c.truth, c.imagined, c.episode, pairs=encoders.pairs, videos=encoders.videos)
        return EvalResult((table,))

    def likeness() -> EvalResult:
        return EvalResult((resemblance_table(clips()),))

    def physics() -> EvalResult:
        found = commonsense(model, setting, episodes=held_out, processes=processes)
        return EvalResult(tuple(physics_tables(found)), tuple(worst_continuations(found)))

    def actions() -> EvalResult:
        return action_part(run, model, setting, robot=protocol.robot, episodes=held_out, processes=processes)

    def inverse() -> EvalResult:
        others = validation_frames(run, {"source": source}, 2 * held_out, processes, recordings, seed=1)
        return EvalResult((inverse_table(model, frames, others),))

    def foresight() -> EvalResult:
        return EvalResult((foresight_table(run, protocol, processes),))

    full = suite == "full"
    parts: dict[Callable[[], EvalResult], bool] = {
        likeness: full and pictured,
        seen: bool(encoders.names),
        physics: full and pictured and bool(ENVIRONMENTS.get(source["env"]).tracked_bodies),
        actions: full,
        inverse: full and bool({Query.FORWARD, Query.JOINT} & model.queries),
        foresight: full and Query.JOINT in model.queries and protocol.replan_every in model.spec.frame_offsets,
    }
    for make in (m for m, wanted in parts.items() if wanted):
        name = make.__name__
        yield cached(out, name, key | ({"encoders": encoders.names} if make is seen else {}), make)
