"""Tables of closed-loop success, of imagined futures and of their coupling to actions; tables as text and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from wamkit.eval.metrics.image import Score
from wamkit.eval.metrics.intervals import clopper_pearson, wilson
from wamkit.eval.results import ACTION, CLOSED_LOOP, VISUAL, Row, Table
from wamkit.eval.suites.closed_loop import Record, outcomes
from wamkit.eval.suites.open_loop import Imagination
from wamkit.inference.model import Model
from wamkit.types import Interval


def success_table(records: Sequence[Record], note: str = "") -> Table:
    """Success per task and pooled, with intervals and counts of outcomes, and the latency of a query.

    note: on the protocol, added to the table's description.
    """
    rows = []
    for task in dict.fromkeys(r.task for r in records):
        own = [r for r in records if r.task == task]
        rate = wilson(sum(r.success for r in own), len(own))
        target = {"target": "at least 85 %", "passed": rate.value >= 0.85}
        rows.append(Row(f"success.{task}", task, rate.value, rate, fmt=".0%", note=outcomes(own), **target))
    rate = clopper_pearson(sum(r.success for r in records), len(records))
    note_pooled = "Clopper-Pearson interval over episodes; tasks: Wilson"
    note_pooled = "; ".join(filter(None, [outcomes(records), note_pooled]))
    target = {"target": "at least 95 %", "passed": rate.value >= 0.95}
    rows.append(Row("success", "all tasks", rate.value, rate, fmt=".1%", note=note_pooled, **target))
    median, p95 = np.percentile([x for r in records for x in r.latency_ms], (50, 95))
    target = {"target": "at most 25", "passed": median <= 25}
    note_latency = f"one core, while the other one works too; 95 % took less than {p95:.1f} ms"
    rows.append(Row("latency.median", "one query, median", median, fmt=".1f", unit="ms", note=note_latency, **target))
    how = (
        "Episodes from reset states never trained on. An episode is a success if the task's condition held at any step."
    )
    how = f"{how} {note}" if note else how
    return Table("closed_loop", "Does it solve the tasks?", how, tuple(rows), CLOSED_LOOP)


def fidelity_table(model: Model, result: Imagination) -> Table:
    """Quality of imagined futures of demonstrations per query and horizon, and the codec's ceiling."""
    rows = []
    for query in (q for q in ("joint", "video", "forward", "ceiling") if q in result.fidelity):
        part, episode = result.demonstrations(query)
        for offset in model.spec.frame_offsets:
            s = part.score(offset, episode, seed=0)
            rows += _ceiling_rows(s) if query == "ceiling" else _fidelity_rows(query, s)
    for k, offset in enumerate(model.spec.frame_offsets if result.points is not None else ()):
        ratio = result.points_over_still(k)
        note = f"of points that move, in a policy query: {1000 * result.point_error(k):.1f} mm off on average"
        name, target = f"scene points, +{offset}: error / standing still", ("at most 0.50", ratio.value <= 0.5)
        rows.append(Row(f"point_error.{offset}", name, ratio.value, ratio, *target, ".3f", note=note))
    how = "Skill is 1 for a perfect image and 0 for a copy of the current frame. Demonstrations only."
    return Table("open_loop", "Is what it imagines right?", how, tuple(rows), VISUAL)


def _ceiling_rows(s: Score) -> list[Row]:
    psnr = {"target": "at least 30", "passed": s.psnr >= 30, "note": "the true future, encoded and decoded"}
    name = f"ceiling of the codec, +{s.offset}"
    return [Row(f"psnr.ceiling.{s.offset}", name, s.psnr, fmt=".1f", unit="dB", **psnr), _sharpness("ceiling", s)]


def _fidelity_rows(query: str, s: Score) -> list[Row]:
    given = "true actions given" if query == "forward" else "nothing given"
    skill = f"{given}; copying in brackets: "
    skill += f"PSNR {s.psnr:.1f} ({s.psnr_copy:.1f}) dB, SSIM {s.ssim:.3f} ({s.ssim_copy:.3f})"
    gain = f"better than copying; {s.moving_share:.0%} of pixels move; {s.windows} windows"
    name = f"{query}, +{s.offset}"
    return [
        _at_least(f"skill.{query}.{s.offset}", f"{name}: skill over copying", s.skill, 0.65, "", skill, ".3f"),
        _at_least(f"moving_gain.{query}.{s.offset}", f"{name}: on moving pixels", s.moving_gain, 6, "dB", gain, ".1f"),
        _sharpness(query, s),
    ]


def _at_least(key: str, name: str, x: Interval, least: float, unit: str, note: str, fmt: str) -> Row:
    """A row whose target is at least `least`."""
    return Row(key, name, x.value, x, f"at least {least:g}", x.value >= least, fmt, unit, note)


def _sharpness(query: str, s: Score) -> Row:
    note = "edges of what moves, imagined / real: 1 is as sharp, less is blurred"
    key, name = f"sharpness.{query}.{s.offset}", f"{query}, +{s.offset}: sharpness"
    return Row(key, name, s.sharpness.value, s.sharpness, fmt=".2f", note=note)


def coupling_table(result: Imagination) -> Table:
    """Action sensitivity of imagined futures, and how much a future helps to read off actions."""
    rows = []
    if result.action_sensitivity is not None:
        ratio = result.true_over_shuffled()
        note, met = "error on moving pixels, same noise; below 1 it follows actions", ratio.value <= 0.8
        met, name = met and ratio.excludes(1), "forward dynamics, true / shuffled actions"
        rows.append(Row("true_over_shuffled", name, ratio.value, ratio, "at most 0.80", met, ".3f", note=note))
    if {"inverse", "policy"} <= set(result.action_error):
        ratio = result.inverse_over_policy()
        note, met = "against executed actions; below 1 it reads the future", ratio.value < 1
        name = "inverse dynamics / policy, action error"
        rows.append(Row("inverse_over_policy", name, ratio.value, ratio, "below 1", met, ".3f", note=note))
    how = "Ratios of two errors on the same windows; intervals resample whole episodes."
    return Table("coupling", "Do image and action belong together?", how, tuple(rows), ACTION)


def text_table(tables: Sequence[Table]) -> str:
    """Text of the tables for a terminal."""
    lines = []
    for table in tables:
        lines += ["", table.title]
        for r in table.rows:
            interval = f"[{bound(r.interval.low, r.fmt)}, {bound(r.interval.high, r.fmt)}]" if r.interval else ""
            value = "undefined" if math.isnan(r.value) else format(r.value, r.fmt)
            verdict = "" if r.passed is None else "met" if r.passed else "MISSED"
            lines.append(f"  {r.name:<42} {value:>8} {r.unit:<3} {interval:<20} {r.target:<14} {verdict}")
    return "\n".join(lines) + "\n"


def bound(x: float, fmt: str) -> str:
    """Text of an interval's end; infinite where too few cases leave it open."""
    return ("-∞" if x < 0 else "∞") if math.isinf(x) else f"{x:{fmt}}"


def json_row(table: Table, r: Row) -> dict[str, Any]:
    """One figure for summary.json. key: of the table and the row, "closed_loop.success"; NaN and infinity stay."""
    low, high = (float(r.interval.low), float(r.interval.high)) if r.interval else (None, None)
    return {
        "key": table.figure(r),
        "axis": table.axis,
        "table": table.title,
        "name": r.name,
        "value": float(r.value),
        "low": low,
        "high": high,
        "unit": r.unit,
        "target": r.target,
        "passed": None if r.passed is None else bool(r.passed),
        "note": r.note,
    }
