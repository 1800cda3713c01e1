"""The whole evaluation of a run: closed loop and imagination on held-out states, summarised in JSON and one HTML page."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from wamkit.config import check_bounds, without_nan
from wamkit.data.loading.windows import Frames
from wamkit.envs import ENVIRONMENTS
from wamkit.envs.base import held_out_seeds
from wamkit.eval.cache import EvalResult, cached
from wamkit.eval.held_out import acting_model, evaluation_env, validation_frames
from wamkit.eval.report.action_tables import action_part, foresight_table, inverse_table
from wamkit.eval.report.card import PICTURED, history, report_card, worst_pictures
from wamkit.eval.report.page import write_report
from wamkit.eval.report.tables import coupling_table, fidelity_table, json_row, success_table, text_table
from wamkit.eval.results import Worst, made_by
from wamkit.eval.suites.clip_distribution import ClipSet, clip_distribution_table, clip_set
from wamkit.eval.suites.closed_loop import Protocol, closed_loop, write_records
from wamkit.eval.suites.open_loop import imagine
from wamkit.eval.suites.physics import commonsense, physics_tables, worst_continuations
from wamkit.eval.suites.pretrained_features import Encoders, encoder_table, named_encoders
from wamkit.files import atomic_write
from wamkit.inference.model import Model
from wamkit.runs.provenance import Provenance
from wamkit.runs.run import Run
from wamkit.types import Query, WamkitError


def evaluate(
    run: Run,
    protocol: Protocol | None = None,
    *,
    held_out: int = 6,
    processes: int = 2,
    recordings: Path | None = None,
    report: bool = True,
    suite: Literal["main", "full"] = "main",
    encoders: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluates `run`, writes run/eval/{summary.json, episodes.parquet, report.html}, prints the table, returns the summary.

    protocol: how to act. A model that gives no actions does not. If it names an environment, other than by default, what is written goes
    to run/eval/<name of the protocol or environment>. suite: `full` adds whether its clips resemble real ones, the laws of physics,
    counterfactuals, and what its own actions do. encoders: pretrained ones whose figures are wanted too, see `named_encoders`.
    held_out: recordings a task on which imagination is scored; with 0, and where no scripted expert records any, closed loop alone.

    recordings: a folder where several runs on the same data share their held-out recordings.   report: whether to write
    the page. Every part is kept when it is done, so that an evaluation which was cut short continues. Raises WamkitError, before
    any work starts, for an argument that is out of range, a query that the model doesn't know, or a damaged run.
    """
    check_bounds(SimpleNamespace(held_out=held_out, processes=processes), held_out=(0, inf), processes=(1, inf))
    given = protocol or Protocol()
    out = run.path / "eval" / (given.name or given.env.env)
    env = evaluation_env(run, given.env, keep_rendering=bool(given.name))
    model, protocol = acting_model(run, env.embodiment), replace(given, env=env)
    acts = any(q in model.queries for q in (Query.POLICY, Query.JOINT))
    if not held_out and (suite == "full" or not acts):
        raise WamkitError(
            "held_out = 0 leaves closed loop alone: the full suite, and a model that gives no actions, need recordings"
        )
    if acts:
        protocol.make_policy(run)
    seen_by = named_encoders(encoders)
    _check_encoders(seen_by, model, held_out * len(env.tasks))
    learning = history(run.path)
    seeds = held_out_seeds(protocol.episodes)
    if shared := set(seeds) & set(run.provenance.seeds):
        raise WamkitError(f"the evaluation seeds {sorted(shared)[:5]} were trained on")
    here = recordings or out
    provenance = replace(run.provenance, env=env)
    frames = validation_frames(provenance, here, held_out, processes=processes) if held_out else None
    records = closed_loop(run, protocol, processes=processes) if acts else []
    if acts:
        write_records(records, out / "episodes.parquet")
    tables = [success_table(records, protocol.note)] if acts else []
    pictured = frames is not None and not model.queries.isdisjoint(PICTURED)
    worst: list[Worst] = []
    if frames is not None:
        result = imagine(model, frames, steps=protocol.steps)
        tables += [fidelity_table(model, result), coupling_table(result)]
        worst += worst_pictures(model, frames, result) if pictured else []
    for part in _parts(run, model, provenance, protocol, frames, held_out, processes, here, out, suite, seen_by):
        tables += part.tables
        worst += part.worst
    tables = [t for t in tables if t.rows]
    summary = {
        "run": str(run.path),
        "family": model.name,
        "step": run.step,
        "training_seconds": run.extra.get("elapsed_s"),
        "weights": run.digest,
        "protocol": protocol.to_dict()
        | {"seeds": seeds, "held_out": held_out, "suite": suite, "encoders": seen_by.names},
        "made_by": made_by(),
        "rows": [json_row(t, r) for t in tables for r in t.rows],
    }
    atomic_write(out / "summary.json", (json.dumps(without_nan(summary), indent=2) + "\n").encode())
    print(text_table(tables))
    if report:
        page = report_card(run, model, learning, protocol, _words(given), records, frames, tables, worst, processes)
        print(f"report: {write_report(page, out / 'report.html')}")
    return summary


def _words(protocol: Protocol) -> str:
    """The environment of a protocol on the command line; empty for the one that the data came from."""
    env = protocol.env
    words = ["--protocol", protocol.name] if protocol.name else ["--env", env.env] if env.env else []
    words += ["--tasks", *env.tasks] if env.tasks else []
    words += ["--options", *(f"{k}={json.dumps(v)}" for k, v in env.options.items())] if env.options else []
    return shlex.join([*words, *(["--embodiment", env.embodiment] if env.embodiment else [])])


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
    run: Run,
    model: Model,
    provenance: Provenance,
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
    env = provenance.env
    key = {"weights": run.digest, "provenance": asdict(provenance)}
    key |= {"protocol": protocol.to_dict(), "held_out": held_out}

    @functools.cache
    def clips() -> ClipSet:
        return clip_set(model, frames)

    def seen() -> EvalResult:
        c = clips()
        table = encoder_table(c.current, c.truth, c.imagined, c.episode, pairs=encoders.pairs, videos=encoders.videos)
        return EvalResult((table,))

    def likeness() -> EvalResult:
        return EvalResult((clip_distribution_table(clips()),))

    def physics() -> EvalResult:
        found = commonsense(model, env, episodes=held_out, processes=processes)
        return EvalResult(tuple(physics_tables(found)), tuple(worst_continuations(found)))

    def actions() -> EvalResult:
        return action_part(run, model, env, episodes=held_out, processes=processes)

    def inverse() -> EvalResult:
        others = validation_frames(provenance, recordings, 2 * held_out, processes=processes, seed=1)
        return EvalResult((inverse_table(model, frames, others),))

    def foresight() -> EvalResult:
        return EvalResult((foresight_table(run, protocol, processes),))

    full = suite == "full"
    parts: dict[Callable[[], EvalResult], bool] = {
        likeness: full and pictured,
        seen: bool(encoders.names),
        physics: full and pictured and bool(ENVIRONMENTS.get(env.env).tracked_bodies),
        actions: full,
        inverse: full and bool({Query.FORWARD, Query.JOINT} & model.queries),
        foresight: full and Query.JOINT in model.queries and protocol.replan_every in model.spec.frame_offsets,
    }
    for make in (m for m, wanted in parts.items() if wanted):
        name = make.__name__
        yield cached(out, name, key | ({"encoders": encoders.names} if make is seen else {}), make)
