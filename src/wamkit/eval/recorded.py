"""Evaluation on recorded episodes, for data without a simulator: actions and imagined futures against what happened.

It says how well a model fits episodes that it never saw, not how often it would succeed: in closed loop, errors add up
and lead to states that no recording shows.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.format.store import Store
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.windows import Frames
from wamkit.eval.held_out import acting_model
from wamkit.eval.outputs import results_folder, write_result
from wamkit.eval.queries import whole_windows
from wamkit.eval.registry import IMAGINING
from wamkit.eval.report.card import history, imagined_clips
from wamkit.eval.report.page import write_report
from wamkit.eval.report.symptoms import Symptom, action_symptoms
from wamkit.eval.report.tables import json_row, text_table
from wamkit.eval.results import Curves, Plot, Report, Worst, made_by, versions
from wamkit.eval.suites.offline_actions import action_tables, answer_actions, worst_actions
from wamkit.eval.suites.open_loop import coupling_table, fidelity_table, imagine, worst_demonstrations
from wamkit.hub.names import named, origin
from wamkit.inference.model import Model
from wamkit.runs.learned import seen_by
from wamkit.runs.run import Run
from wamkit.types import EvaluationError, Query, Spec


def evaluate_recorded(
    run: Run, data: Path, embodiment: str = "", *, steps: int | None = None, stride: int = 4
) -> dict[str, Any]:
    """Evaluates `run` on the episodes of the data set `data` that it was not trained on, and returns the summary.

    Prints the tables, and writes summary.json and report.html into eval/recorded of the run, or beside it if another
    data set was evaluated there.

    embodiment: of a mixture, the data set whose robot recorded the episodes.
    steps: denoising steps a query; None for the model's own number.
    stride: steps between two windows.

    Raises EvaluationError where no episode is left or long enough, and for cameras or vectors other than the model's.
    """
    model, store = acting_model(run, embodiment), Store.open(data)
    check_shapes(run, model, store)
    spec = model.spec
    every = open_frames(store, (spec.height, spec.width))[0]
    left = unseen(run, store)
    frames = _held_out(run, model, store, left, every)
    starts = whole_windows(frames, spec, stride)
    if not len(starts):
        raise EvaluationError(
            f"{data}: no held-out episode is longer than {max(*spec.frame_offsets, spec.chunk)} steps"
        )
    episodes = np.unique(frames.episode[starts]).tolist()
    tables, worst, plots = [], list[Worst](), list[Plot]()
    demonstrations = _demonstrations(frames, spec)
    if Query.POLICY in model.queries and demonstrations is not None:
        layout, metadata = store.layout, load_metadata(store.root)
        answers = answer_actions(
            model,
            demonstrations,
            _demonstrations(replace(every, used=seen_by(run.described, store, actions=True)), spec),
            names=(layout.action_names, layout.proprio_names),
            fields=metadata.action if metadata else (),
            stride=stride,
            steps=steps,
        )
        tables += action_tables(answers, layout.action_names, layout.fps)
        worst, plots = worst_actions(answers, demonstrations, layout.action_names)
    if not model.queries.isdisjoint(IMAGINING):
        result = imagine(model, frames, stride=stride, steps=steps)
        tables += [fidelity_table(model, result), coupling_table(result)]
        worst += worst_demonstrations(model, frames, result)
    tables = [t for t in tables if t.rows]
    acting = {"embodiment": embodiment} if embodiment else {}
    given = acting | ({} if steps is None else {"steps": steps})
    words = [word for k, v in given.items() for word in (f"--{k}", str(v))]
    summary = {
        "run": run.label,
        "family": model.name,
        "step": run.step,
        "training_seconds": run.extra.get("elapsed_s"),
        "weights": run.digest,
        "command": shlex.join(["wamkit", "eval", run.label, "--data", named(data), *words]),
        "protocol": {"data": named(data), "episodes": episodes, "stride": stride} | given,
        "made_by": made_by(),
        "rows": [json_row(t, r) for t in tables for r in t.rows],
    }
    found = action_symptoms({r["key"]: r for r in summary["rows"]})
    print(text_table(tables))
    for symptom in found:
        print(f"{symptom.verdict}: {symptom.finding}" + (f"; {symptom.remedy}" if symptom.remedy else ""))
    learning, trained = history(run.path)
    shown = [q for q in (Query.FORWARD, Query.JOINT) if q in model.queries]
    imagined, stills = imagined_clips(model, frames, [(frames.text[e], e, q) for e in episodes[:4] for q in shown])
    seedless = {k: v for k, v in asdict(run.provenance).items() if k != "seeds"}
    page = Report(
        title=f"{model.name}: {run.name}",
        subtitle=f"{len(episodes)} held-out episodes of {named(data)}, {run.step} training steps",
        verdict=tuple(_sentence(s) for s in found),
        headline=tuple(r for t in tables for r in t.rows)[:4],
        tables=tuple(tables),
        imagined=imagined,
        stills=stills,
        worst=tuple(worst),
        plots=tuple(plots),
        curves=(Curves("Losses", learning, {k: (k,) for k in _losses(learning)}),),
        commands=tuple(filter(None, (trained, summary["command"]))),
        versions=versions(),
        config={**run.described, "provenance": seedless, "weights": run.digest},
        scale=max(1, 256 // spec.height),
    )
    with results_folder(run.home / "eval/recorded", "summary.json", summary["protocol"], _label(store)) as folder:
        write_result(folder / "summary.json", summary)
        print(f"report: {write_report(page, folder / 'report.html')}")
    return summary


def _sentence(symptom: Symptom) -> str:
    words = {"fine": "", "fault": "Fault: ", "undecided": "Undecided: ", "unknown": ""}
    said = words[symptom.verdict] + symptom.finding + (f". {symptom.remedy}" if symptom.remedy else "")
    return said[0].upper() + said[1:]


def _label(store: Store) -> str:
    found = origin(store.root)
    return found.repo.replace("/", "--") if found else store.root.name


def unseen(run: Run, store: Store) -> Bool[np.ndarray, " E"]:
    """True for the episodes of `store` that the weights of `run` never saw; see `seen_by`."""
    return ~seen_by(run.described, store)


def _demonstrations(frames: Frames, spec: Spec) -> Frames | None:
    """The demonstrations with actions among the episodes in use; None where none of them holds a window."""
    used = np.isin(np.arange(len(frames.text)), frames.chosen()) & frames.is_demonstration & frames.has_action
    chosen = replace(frames, used=used)
    return chosen if len(whole_windows(chosen, spec, 1)) else None


def _held_out(run: Run, model: Model, store: Store, left: Bool[np.ndarray, " E"], frames: Frames) -> Frames:
    """The frames of the episodes that the run was not trained on, without those that lack views that the model needs.

    left: those episodes, see `unseen`.
    """
    if not left.any():
        raise EvaluationError(
            f"{run.label} was trained on all {len(left)} episodes of {named(store.root)}: train with "
            f"--episodes.held-out {max(1, len(left) // 10)} to leave some out, or name other data"
        )
    seen = replace(frames, embodiment=model.embodiment).views_seen()
    needed = [c not in run.optional_views for c in model.spec.cameras]
    if not (shown := left & (seen[:, needed].all(1) if any(needed) else seen.any(1))).any():
        cameras = ", ".join(c for c, n in zip(model.spec.cameras, needed, strict=True) if n or not any(needed))
        raise EvaluationError(
            f"{store.root}: none of its held-out episodes shows the views that {run.label} needs, {cameras}; name "
            "other data, or train with --train.drop-view"
        )
    if lacking := int((left & ~shown).sum()):
        print(f"note: {lacking} of {int(left.sum())} held-out episodes lack views that {run.label} needs", flush=True)
    return replace(frames, used=shown)


def check_shapes(run: Run, model: Model, store: Store) -> None:
    """Raises EvaluationError where `store` has other cameras or vectors than the model of `run`."""
    if model.embodiment is not None:
        return  # its own checks name what is missing
    spec, layout = model.spec, store.layout
    for what, has, needs in (
        ("cameras", store.cameras, spec.cameras),
        ("state dimensions", len(layout.proprio_names), spec.proprio_dim),
        ("action dimensions", len(layout.action_names), spec.action_dim),
    ):
        if has != needs:
            raise EvaluationError(f"{store.root}: its {what} are {has}, those that {run.label} learned from {needs}")


def _losses(rows: list[dict[str, Any]]) -> list[str]:
    return sorted({k for m in rows for k in m} - {"step", "stage", "lr", "grad_norm", "seconds", "wait"})
