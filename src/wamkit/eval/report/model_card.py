"""The card of a run on the Hub: what it is, how it was trained and evaluated, and the commands that repeat both."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from wamkit.eval.outputs import read_result
from wamkit.eval.report.card import history
from wamkit.eval.report.overview import evaluations_of
from wamkit.hub.cards import card, cell, code, table
from wamkit.hub.names import hub_name
from wamkit.runs.config import family_class
from wamkit.runs.run import Run

ANSWERS = {
    "policy": "actions from an observation and an instruction",
    "video": "future frames from an observation and an instruction",
    "forward": "future frames from an observation and actions",
    "inverse": "actions from an observation and future frames",
    "joint": "future frames and actions together",
}
_KEPT = ("family", "step", "weights", "command", "protocol", "made_by", "rows", "training_seconds")
_ABSOLUTE = re.compile(r"(?<![^=,])/(?:[^/=,]+/)*([^/=,]*)")
_INDEXED = ("closed_loop.success", "recorded.error.all", "coupling.")


def evaluations(run: Run, repo: str) -> list[dict[str, Any]]:
    """The evaluations of these weights, as summary.json has them, without paths of this machine.

    repo: "user/name", which the commands name in place of the run's folder.

    Raises StoreError for one that is damaged.
    """
    found = [read_result(folder / "summary.json") for folder in evaluations_of(run.home)]
    out = []
    for summary in (s for s in found if run.is_named(str(s.get("weights", "")))):
        kept = {k: summary[k] for k in _KEPT if k in summary}
        here = {str(summary.get("run")), str(run.path), run.label}
        kept["command"] = _portable(str(summary.get("command", "")), here, repo)
        if "data" in kept.get("protocol", {}):
            kept["protocol"] = {**kept["protocol"], "data": _place(str(kept["protocol"]["data"]))}
        out.append(kept)
    return out


def model_card(run: Run, repo: str, parameters: int, evaluated: Sequence[Mapping[str, Any]], licence: str) -> bytes:
    """README.md of the repository `repo`.

    evaluated: as `evaluations` returns it.   licence: "" where none is stated.
    """
    family = family_class(run.config.family)
    env, name = run.provenance.env, repo.split("/")[1]
    data = {found.repo for p in run.sources.values() if p.hub and (found := hub_name(p.hub))}
    results = [r for e in evaluated if (r := _result(e))]
    index = [{"name": name, "results": results}] if results else []
    metadata = {
        "library_name": "wamkit",
        "license": licence,
        "pipeline_tag": "robotics",
        "tags": ["wamkit", "world-action-model", "robotics", run.config.family, *([env.env] if env.env else [])],
        "datasets": sorted(data),
        "model-index": index,
    }
    metadata = {k: v for k, v in metadata.items() if v}
    queries = [[q, ANSWERS.get(q, "")] for q in sorted(family.queries)]
    facts = [[k, getattr(family.taxonomy, k)] for k in ("leaf", "modality", "conditioning", "decoder", "gradient")]
    trained = _portable(history(run.path)[1] or "", set(), repo)
    sections = [
        f"A World Action Model of the family `{run.config.family}`, trained with wamkit (`pip install 'wamkit[hub]'`): "
        f"{parameters:,} parameters, {run.step} training steps.",
        code(f'import wamkit\n\nmodel = wamkit.load("{repo}")', "python"),
        "## Taxonomy\n\n" + table(("axis", "place"), facts),
        "## Queries\n\n" + table(("query", "answer"), queries),
        "## Inputs and outputs\n\n" + table(("what", "value"), _shapes(run)),
        "## Training data\n\n" + table(("data", "environment", "episodes", "frames", "actions"), _sources(run)),
        code(trained),
        *(_evaluation(e) for e in evaluated),
        "" if evaluated else "## Figures\n\nNo evaluation of these weights was pushed.",
        f"## Licence\n\n{cell(licence) if licence else 'Not stated: ask the author before you use it.'}",
        f"Weights {run.digest}. The files are safetensors and JSON: loading them runs no code.",
    ]
    return card(metadata, name, sections)


def _shapes(run: Run) -> list[list[object]]:
    spec = run.spec
    return [
        ["cameras", ", ".join(spec.cameras)],
        ["frames of the network", f"{spec.height}x{spec.width}; others are resized"],
        ["state, action", f"{spec.proprio_dim}, {spec.action_dim}"],
        ["actions an answer", spec.chunk],
        ["predicted frames, steps ahead", ", ".join(map(str, spec.frame_offsets))],
        ["steps a second", spec.fps],
    ]


def _sources(run: Run) -> list[list[object]]:
    rows = []
    for name, p in run.sources.items():
        where = f"{p.env.env}: {', '.join(p.env.tasks)}" if p.env.env else "none"
        labels = run.metadata[name].labels if name in run.metadata else None
        actions = f"read off video by {labels.run} ({labels.family}, {labels.digest[:16]})" if labels else "recorded"
        rows.append([p.hub or name or "recorded by the author", where, p.episodes, p.frames, actions])
    return rows


def _evaluation(summary: Mapping[str, Any]) -> str:
    """One evaluation: figures with their intervals, the protocol, and the command that repeats it."""
    protocol, made = summary["protocol"], summary.get("made_by", {})
    shown = {k: v for k, v in protocol.items() if v not in (None, "", [], {}) and k not in ("seeds", "note")}
    if seeds := protocol.get("seeds"):
        shown["seeds"] = f"{min(seeds)} to {max(seeds)}, {len(seeds)}" if isinstance(seeds, list) else seeds
    how = "; ".join(f"{k.replace('_', ' ')} {_words(v)}" for k, v in shown.items())
    rows = [[r["table"], r["name"], _figure(r), _interval(r)] for r in summary["rows"]]
    parts = [
        f"## Figures: {cell(_title(protocol))}",
        table(("table", "figure", "value", "95 % interval"), rows),
        f"Protocol: {cell(how)}.",
        code(summary["command"]),
        f"Measured with wamkit {cell(' '.join(str(made.get(k, '')) for k in ('wamkit', 'commit', 'machine')))}.",
    ]
    return "\n\n".join(filter(None, parts))


def _title(protocol: Mapping[str, Any]) -> str:
    return str(protocol.get("name") or protocol.get("env") or f"recordings {protocol.get('data', '')}")


def _result(summary: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation as an entry of the Hub's model-index; {} where none of its figures belongs there."""
    rows = [r for r in summary["rows"] if str(r.get("key", "")).startswith(_INDEXED) and _is_finite(r["value"])]
    names = [f"{r['name']}, {_interval(r) or 'no interval'}" for r in rows]
    metrics = [{"type": r["key"], "name": name, "value": r["value"]} for r, name in zip(rows, names, strict=True)]
    title = _title(summary["protocol"])
    source = {"type": summary["protocol"].get("env") or "recordings", "name": title}
    return {"task": {"type": "robotics"}, "dataset": source, "metrics": metrics} if metrics else {}


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _figure(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.3g} {row.get('unit') or ''}".rstrip() if _is_finite(row["value"]) else "undefined"


def _interval(row: Mapping[str, Any]) -> str:
    ends = row.get("low"), row.get("high")
    return "[{:.3g}, {:.3g}]".format(*ends) if all(map(_is_finite, ends)) else ""


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _portable(command: str, here: set[str], repo: str) -> str:
    """A command line without the paths of this machine: the run's is `repo`, of others the last part stays."""
    return shlex.join(repo if word in here else _place(word) for word in shlex.split(command))


def _place(word: str) -> str:
    """A word of a command line, with the last part of an absolute path in place of the whole."""
    return _ABSOLUTE.sub(r"\1", word)
