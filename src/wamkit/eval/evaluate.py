"""The evaluation of a run: every registered evaluation, summarised in JSON and on one HTML page."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from wamkit import old_names
from wamkit.envs.base import held_out_seeds
from wamkit.eval.cache import cached
from wamkit.eval.held_out import acting_model, check_playable, evaluation_env
from wamkit.eval.outputs import results_folder, weights_of, write_result
from wamkit.eval.protocols import Protocol, targets_under
from wamkit.eval.registry import Context, EvalOptions, Evaluation, evaluations
from wamkit.eval.report.card import command, history, label, report_card
from wamkit.eval.report.page import write_report
from wamkit.eval.report.tables import json_row, text_table
from wamkit.eval.results import EvalResult, aimed, made_by
from wamkit.eval.suites.closed_loop import evaluated_records, records_file
from wamkit.files import atomic_write
from wamkit.runs.run import Run
from wamkit.types import WamkitError
from wamkit.workers import kept_workers


@kept_workers()
def evaluate(run: Run, protocol: Protocol | None = None, options: EvalOptions | None = None) -> dict[str, Any]:
    """Evaluates `run` and returns the summary.

    Prints the tables and writes summary.json, episodes.parquet and report.html into run/eval or, if `protocol` has a
    name or names an environment, into run/eval/<that name>. If these hold an evaluation under another protocol or with
    other options, it stays, and the files go to a folder beside them (`results_folder`). Finished results are cached,
    so that an interrupted evaluation continues.

    protocol: the way to act. Only models that give actions act.
    options: validation episodes, the set of evaluations, worker processes.
    Raises WamkitError, before any work starts, for an argument that is out of range, a query that the model does not
    support, and a damaged run.
    """
    requested, options = protocol or Protocol(), options or EvalOptions()
    context = _context(run, requested, options)
    wanted = _wanted(context)
    learning = history(run.path)
    if context.acts:
        check_playable(run, context.env)
    seeds = held_out_seeds(requested.episodes)
    context.check_unseen(seeds, "the evaluation seeds")
    settings = {"seeds": seeds, "held_out": options.held_out, "suite": options.suite}
    for evaluation in evaluations().values():
        settings |= evaluation.settings(context)
    if options.held_out:
        _ = context.frames  # recorded first: where that fails, nothing else has been done
    results = [_result(context, name, evaluation) for name, evaluation in wanted.items()]
    targets = targets_under(run, requested, context.env)
    tables = aimed([t for r in results for t in r.tables if t.rows], targets)
    summary = {
        "run": run.label,
        "family": context.model.name,
        "step": run.step,
        "training_seconds": run.extra.get("elapsed_s"),
        "weights": run.digest,
        "command": command(run.label, requested.replanning(run), options),
        "protocol": context.protocol.to_dict() | settings,
        "made_by": made_by(),
        "rows": [json_row(t, r) for t in tables for r in t.rows],
    }
    folder = _write(context, requested, summary)
    print(text_table(tables))
    if limits := _limits(context):
        print(f"note: {limits}")
    if options.report:
        page = report_card(context, summary["command"], learning, tables, [w for r in results for w in r.worst])
        print(f"report: {write_report(page, folder / 'report.html')}")
    return summary


def _write(context: Context, requested: Protocol, summary: dict[str, Any]) -> Path:
    """Writes summary.json and episodes.parquet, and returns their folder. The page of other weights goes."""
    named = label(requested, context.options)
    with results_folder(context.folder, "summary.json", summary["protocol"], named) as folder:
        if context.acts:
            content = records_file(evaluated_records(context))
            summary["files"] = {"episodes.parquet": hashlib.sha256(content).hexdigest()}
            atomic_write(folder / "episodes.parquet", content)
        if not context.run.is_named(weights_of(folder / "summary.json")):
            (folder / "report.html").unlink(missing_ok=True)
        write_result(folder / "summary.json", summary)
    return folder


def _context(run: Run, requested: Protocol, options: EvalOptions) -> Context:
    env = evaluation_env(run, requested.env, keep_rendering=bool(requested.name))
    folder = run.home / "eval" / (requested.name or requested.env.env)
    context = Context(
        run, acting_model(run, env.embodiment), replace(requested.replanning(run), env=env), folder, options
    )
    note = " ".join(filter(None, [requested.note, _limits(context)]))
    return replace(context, protocol=replace(context.protocol, note=note))


def _limits(context: Context) -> str:
    """Sentences about what the environment cannot do, and what is therefore left out."""
    said, full = [], context.options.suite == "full"
    lost = [name for name, e in evaluations().items() if full and e.needs_snapshots and e.needs(context)]
    if lost and not context.env.takes_snapshots:
        said.append(f"The environment takes no snapshots, so there is no {' and no '.join(lost)}.")
    if not context.env.seeded:
        said.append("Its resets do not follow their seed: each evaluation meets other starts, perhaps trained ones.")
    return " ".join(said)


def _wanted(context: Context) -> dict[str, Evaluation]:
    """The evaluations to run, by name and in order. Raises WamkitError where one of them could not run."""
    held_out, full = context.options.held_out, context.options.suite == "full"
    if not held_out and (full or not context.acts):
        raise WamkitError(
            "held_out = 0 leaves closed loop alone: the full suite, and a model that gives no actions, need recordings"
        )
    wanted = {n: e for n, e in evaluations().items() if (full or e.suite == "main") and e.needs(context)}
    if not context.env.takes_snapshots:
        wanted = {n: e for n, e in wanted.items() if not e.needs_snapshots}
    for evaluation in wanted.values():
        evaluation.check(context)
    return {n: e for n, e in wanted.items() if held_out or not e.needs_episodes}


def _result(context: Context, name: str, evaluation: Evaluation) -> EvalResult:
    """The result of one evaluation, from the cache if it has one."""
    if not evaluation.cached:
        return evaluation.run(context)
    key = {
        "weights": context.run.digest,
        **old_names.without_added({"provenance": asdict(context.provenance)}),
        "protocol": context.protocol.to_dict(),
        "held_out": context.options.held_out,
        **evaluation.settings(context),
    }
    return cached(context.folder, name, key, partial(evaluation.run, context))
