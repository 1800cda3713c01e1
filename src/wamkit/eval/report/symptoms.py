"""Faults of a run as its evaluations show them, in the order in which to look: `wamkit diagnose`.

Verdicts come from the intervals of the figures: a figure whose interval holds the value of "no better than nothing" is
undecided, and more episodes would tell. A figure of one episode has no interval and no verdict.
docs/when-it-does-not-work.md describes the order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Literal

from wamkit.eval.outputs import read_result
from wamkit.eval.report.overview import evaluations_of, read_evaluation
from wamkit.eval.suites.forecast_vs_execution import judged
from wamkit.files import StoreError
from wamkit.runs.config import home
from wamkit.runs.run import Run
from wamkit.types import UNDEFINED, Interval

Verdict = Literal["fine", "fault", "undecided", "unknown"]

HALF = 0.5
"""Share of successful episodes below which a policy fails more often than it succeeds."""


IN_CLOSED_LOOP = "wamkit eval with a larger --held-out would tell"
ON_RECORDINGS = (
    "more held-out episodes would tell: wamkit train with a larger --episodes.held-out, or wamkit eval --data"
)
"""Remedies for few validation episodes."""
EXACT = 1e-6
"""Difference up to which two errors count as the same."""


@dataclass(frozen=True)
class Symptom:
    """One place to look.

    place: data, actions, images, coupling, closed loop, or chunk and replan.
    finding: the figure and what it means.   remedy: what to try, or the command that would tell; "" if nothing.
    """

    place: str
    verdict: Verdict
    finding: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.place + ':':<17} {self.verdict}: {self.finding}" + (f"; {self.remedy}" if self.remedy else "")


def symptoms(run: Run, evaluation: str = "") -> list[Symptom]:
    """The places to look, in order.

    evaluation: as in `read_evaluation`.

    Raises WamkitError for an evaluation of other weights or a damaged one. A run without one is told by its data alone.
    """
    found = [_data(run)]
    if not evaluations_of(home(run.path)):
        robots = "|".join(run.embodiments)
        recorded = f" --data DATA --embodiment {robots}" if robots else " --offline"
        command = f"wamkit eval {run.label}" + ("" if run.provenance.env.env else recorded)
        return [*found, Symptom("evaluation", "unknown", "it was not evaluated", command)]
    summary = read_evaluation(home(run.path), evaluation)
    rows, protocol = summary.figures, summary.summary["protocol"]
    more = ON_RECORDINGS if "data" in protocol else IN_CLOSED_LOOP
    found += [*action_symptoms(rows), *_images(rows, more), *_coupling(rows, more), *_execution(rows)]
    return found + _closed_loop(run, rows, protocol)


def verdict(found: list[Symptom]) -> str:
    """The first fault in words; else what is undecided, or that none was found. Without an interval nothing is told."""
    for kind, words in (("fault", "look first at the {}"), ("undecided", "no fault is certain; undecided: the {}")):
        for symptom in found:
            if symptom.verdict == kind:
                return f"{words.format(symptom.place)}: {symptom.finding}; {symptom.remedy}"
    if any(s.verdict == "fine" for s in found):
        return "no fault found in the figures that there are"
    return f"nothing can be told yet: {found[-1].remedy}"


def action_symptoms(rows: Mapping[str, Mapping[str, Any]]) -> list[Symptom]:
    """Faults of actions on recordings, by the figures of `suites.offline_actions`, the gravest first."""
    found = [
        _still(rows),
        _against(rows, "recorded.over.mean", "the mean action", _MEAN),
        _against(rows, "recorded_habits.attention", "its own answers to other moments", _MEAN, 0.75, _UNSEEING),
        _against(rows, "recorded.over.nearest", "the nearest demonstration", _NEAREST, inf),
        _habit(rows, "recorded_habits.change", 0.1, "it repeats its last action", _LAST, below=True),
        _habit(rows, "recorded_habits.unseen", 2.0, "it knows its demonstrations by heart", _HEART),
        _habit(rows, "recorded_spread.spread", 0.5, "it is too sure of itself", _SURE, below=True, grave=False),
    ]
    return [s for s in found if s]


_STILL = "check signs, units and the delay of the actions in the data (wamkit browse), then train longer"
_MEAN = "check that images and actions belong to the same moments (wamkit browse), then train longer"
_UNSEEING = ", so it hardly depends on what it sees"
_NEAREST = "train longer or with more data: copying what was done in the most similar moment is as good"
_LAST = "leave the state out, or blur it (--model.proprio-noise): it tells the last action"
_HEART = "collect more demonstrations, shift images (--train.shift), or train for fewer steps"
_SURE = "the policy's draws differ too little: use more demonstrations"


def _still(rows: Mapping[str, Mapping[str, Any]]) -> Symptom | None:
    """The error over that of standing still, and the dimensions in which it is worse."""
    found = _against(rows, "recorded.over.still", "standing still", _STILL)
    single = {k: r for k, r in rows.items() if k.startswith("recorded_dimensions.dimension.")}
    worse = [r["name"].partition(":")[0] for r in single.values() if _interval(r)[1] >= 1]
    if found is None or not worse or len(single) == 1:
        return found
    where = "in every dimension" if len(worse) == len(single) else f"in {', '.join(worse)}"
    said = found.finding + (", " if found.verdict == "fault" else ", but worse ") + where
    return Symptom("actions", "fault", said, _STILL)


def _against(
    rows: Mapping[str, Mapping[str, Any]], key: str, other: str, remedy: str, bound: float = 1.0, meaning: str = ""
) -> Symptom | None:
    """The policy's error over that of `other`. A fault if the whole interval lies at `bound` or above."""
    row = rows.get(key)
    if row is None or row.get("value") is None:
        return None
    value, low, high = _interval(row)
    if abs(value - 1) < EXACT:  # in every window, so that no interval is left
        return Symptom(
            "actions", "fault" if bound <= 1 else "undecided", f"its error is that of {other}{meaning}", remedy
        )
    if few := _few("actions", f"error over that of {other}", row, ON_RECORDINGS):
        return few
    said = f"error {value:.2f} [{low:.2f}, {high:.2f}] of that of {other}"
    if low >= bound:
        return Symptom("actions", "fault", f"{said}: {'worse' if low >= 1 else 'no better'}{meaning}", remedy)
    if high < 1:
        return Symptom("actions", "fine", f"{said}: better")
    return Symptom(
        "actions", "undecided", f"{said}: {'worse' if low >= 1 else 'no better, as far as it shows'}", remedy
    )


def _habit(
    rows: Mapping[str, Mapping[str, Any]],
    key: str,
    bound: float,
    words: str,
    remedy: str,
    below: bool = False,
    grave: bool = True,
) -> Symptom | None:
    """A fault where the whole interval lies beyond `bound`; None where it does not."""
    row = rows.get(key)
    if row is None or row.get("value") is None:
        return None
    value, low, high = _interval(row)
    if not (high < bound or value < EXACT if below else low > bound):
        return None
    said = f"{row['name']} {value:.2f} [{low:.2f}, {high:.2f}]: {words}"
    return Symptom("actions", "fault" if grave else "undecided", said, remedy)


def _data(run: Run) -> Symptom:
    episodes, frames = run.provenance.episodes, run.provenance.frames
    told = "wamkit validate DATA and wamkit browse DATA show what is in them"
    return Symptom("data", "unknown", f"{episodes} episodes, {frames} frames", told)


def _interval(row: Mapping[str, Any]) -> tuple[float, float, float]:
    value, low, high = (row.get(k) for k in ("value", "low", "high"))
    return float(value), float("-inf") if low is None else float(low), float("inf") if high is None else float(high)


def _few(place: str, name: str, row: Mapping[str, Any], more: str) -> Symptom | None:
    """A figure whose interval has an open end: that of one episode, or of a few that agree."""
    value, low, high = _interval(row)
    if isfinite(low) and isfinite(high):
        return None
    said = f"{name} {value:.2f}; one episode, or few: no interval"
    return Symptom(place, "unknown", said, more)


def _images(rows: Mapping[str, Mapping[str, Any]], more: str) -> list[Symptom]:
    """The skill of imagined frames over a copy of the current one, at the nearest and the farthest horizon."""
    skills = {k: r for k, r in rows.items() if k.startswith("open_loop.skill.") and r.get("value") is not None}
    query = next((q for q in ("joint", "video", "forward") if any(f".{q}." in k for k in skills)), "")
    if not query:
        return []
    horizons = sorted((k for k in skills if f".{query}." in k), key=lambda k: int(k.rpartition(".")[2]))
    out = []
    for key in dict.fromkeys((horizons[0], horizons[-1])):
        value, low, high = _interval(skills[key])
        name = f"skill of {query}, {key.rpartition('.')[2]} steps ahead,"
        said = f"{name} {value:.2f} [{low:.2f}, {high:.2f}]"
        if few := _few("images", name, skills[key], more):
            out.append(few)
        elif low > 0:
            out.append(Symptom("images", "fine", f"{said}: better than a copy of the current frame"))
        elif high < 0:
            remedy = "look at wamkit sample RUN --query video; train longer, with more data or a larger model"
            remedy = "predict less far: --window.frame-offsets" if out and out[0].verdict == "fine" else remedy
            out.append(Symptom("images", "fault", f"{said}: worse than a copy of the current frame", remedy))
        else:
            out.append(Symptom("images", "undecided", f"{said}: no better than a copy, as far as it shows", more))
    return out


_RATIOS = {
    "coupling.true_over_shuffled": (
        "error with true over shuffled actions",
        "its images follow the actions",
        "its images ignore the actions",
        "train on off-expert episodes too (collect --off-expert), longer, or with more weight on the future",
    ),
    "coupling.inverse_over_policy": (
        "error of inverse dynamics over the policy's",
        "it reads actions off a future",
        "it reads no more from a future than it knows without one",
        "train longer; if images are right, its actions do not come from them: try another family",
    ),
}
"""Ratio of two errors -> its name, the meaning of below 1 and of 1 or more, and what to try."""


def _coupling(rows: Mapping[str, Mapping[str, Any]], more: str) -> list[Symptom]:
    out = []
    for key, (name, right, wrong, remedy) in _RATIOS.items():
        if (row := rows.get(key)) is None or row.get("value") is None:
            continue
        value, low, high = _interval(row)
        said = f"{name} {value:.2f} [{low:.2f}, {high:.2f}]"
        if few := _few("coupling", name, row, more):
            out.append(few)
        elif high < 1:
            out.append(Symptom("coupling", "fine", f"{said}: {right}"))
        elif low >= 1:
            out.append(Symptom("coupling", "fault", f"{said}: {wrong}", remedy))
        else:
            either = f"{wrong}, or {right}, which lowers the error by {1 - low:.0%} at most"
            tell = f"{more}; if it stays at 1, {remedy}"
            out.append(Symptom("coupling", "undecided", f"{said}: {either}", tell))
    return out


def _execution(rows: Mapping[str, Mapping[str, Any]]) -> list[Symptom]:
    """The imagined future, the executed one and the expert's, of the suite "full"."""
    keys = ("forecast", "policy", "consistency")
    told = {k: r for k in keys if (r := rows.get(f"forecast_vs_execution.{k}")) and r.get("value") is not None}
    if not told:
        return []
    skills = {k: Interval(*_interval(row)) for k, row in told.items()}
    if not any(isfinite(s.low) for s in skills.values()):
        said = ", ".join(f"{k} {s.value:.2f}" for k, s in skills.items()) + "; one episode, or few: no interval"
        more = "wamkit eval --suite full with a larger --held-out would tell"
        return [Symptom("video and arm", "unknown", said, more)]
    right, words = judged(*(skills.get(k, UNDEFINED) for k in keys))
    verdicts: dict[bool | None, Verdict] = {True: "fine", False: "fault", None: "undecided"}
    said = ", ".join(f"{k} {s.value:.2f} [{s.low:.2f}, {s.high:.2f}]" for k, s in skills.items())
    remedy = "" if right else "wamkit diagnose RUN --episode N shows the three videos of an episode"
    return [Symptom("video and arm", verdicts[right], f"{said}: {words}", remedy)]


def _closed_loop(run: Run, rows: Mapping[str, Mapping[str, Any]], protocol: Mapping[str, Any]) -> list[Symptom]:
    row = rows.get("closed_loop.success")
    if row is None or row.get("value") is None:
        return [
            Symptom("closed loop", "unknown", "it was not played", "wamkit eval RUN --env NAME, or try on the robot")
        ]
    value, low, high = _interval(row)
    said = f"success {value:.0%} [{low:.0%}, {high:.0%}], replanned every {protocol['replan_every']} steps"
    if low > HALF:
        return [Symptom("closed loop", "fine", said)]
    if high >= HALF:
        more = f"wamkit eval {run.label} --episodes {4 * int(protocol['episodes'])} would tell"
        return [Symptom("closed loop", "undecided", said, more), *_replanned(run, protocol, low, high)]
    said = f"{said}: it fails more often than it succeeds"
    size = "compare with a run on half of the data (--episodes.labelled): if that is as bad, more data will not help"
    return [Symptom("closed loop", "fault", said, size), *_replanned(run, protocol, low, high)]


def _replanned(run: Run, protocol: Mapping[str, Any], low: float, high: float) -> list[Symptom]:
    """Other evaluations of the run that replan more or less often, compared by their intervals."""
    every = int(protocol["replan_every"])
    others = {}
    for folder in evaluations_of(home(run.path)):
        try:
            other = read_result(folder / "summary.json")
            rows = {r.get("key"): r for r in other["rows"]}
            like = {k: v for k, v in other["protocol"].items() if k in ("env", "tasks", "seeds", "query")}
            if like == {k: protocol.get(k) for k in like} and other["protocol"]["replan_every"] != every:
                others[int(other["protocol"]["replan_every"])] = _interval(rows["closed_loop.success"])
        except (StoreError, LookupError, TypeError, ValueError):
            continue  # one that cannot be read says nothing
    if not others:
        half = max(1, every // 2)
        return [] if half == every else [
            Symptom("chunk and replan", "unknown", f"only replanning every {every} steps was tried",
                    f"wamkit eval {run.label} --replan-every {half}")
        ]  # fmt: skip
    best, (value, best_low, best_high) = max(others.items(), key=lambda item: item[1][0])
    said = f"replanning every {best} steps gives {value:.0%} [{best_low:.0%}, {best_high:.0%}]"
    if best_low > high:
        return [Symptom("chunk and replan", "fault", said, f"use --replan-every {best}")]
    if best_high < low:
        return [Symptom("chunk and replan", "fine", f"{said}, which is worse")]
    return [Symptom("chunk and replan", "undecided", f"{said}, which is not apart", "more episodes would tell")]
