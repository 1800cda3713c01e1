"""The tables of success, fidelity and coupling, and how tables become text and JSON."""

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

SOLVES = "Does it solve the tasks?"
"""Title of the table of success."""


def success_table(records: Sequence[Record], note: str = "") -> Table:
    """Success per task and pooled, with intervals and what went wrong, and the latency of queries. note: on the protocol."""
    rows = []
    for task in dict.fromkeys(r.task for r in records):
        own = [r for r in records if r.task == task]
        rate = wilson(sum(r.success for r in own), len(own))
        rows.append(Row(task, rate.value, rate, "at least 85 %", rate.value >= 0.85, ".0%", note=outcomes(own)))
    rate = clopper_pearson(sum(r.success for r in records), len(records))
    latency = np.percentile([x for r in records for x in r.latency_ms], (50, 95))
    rows.append(
        Row(
            "all tasks",
            rate.value,
            rate,
            "at least 95 %",
            rate.value >= 0.95,
            ".1%",
            note="; ".join(filter(None, [outcomes(records), "Clopper-Pearson interval over episodes; tasks: Wilson"])),
        )
    )
    rows.append(
        Row(
            "one query, median",
            latency[0],
            None,
            "at most 25",
            latency[0] <= 25,
            ".1f",
            "ms",
            f"one core, while the other one works too; 95 % took less than {latency[1]:.1f} ms",
        )
    )
    return Table(
        SOLVES,
        " ".join(
            filter(
                None,
                ["Episodes from reset states never trained on, solved if the task's condition held at any step.", note],
            )
        ),
        tuple(rows),
        CLOSED_LOOP,
    )


def _figure(name: str, interval: Interval, least: float, unit: str, note: str, fmt: str) -> Row:
    """A row whose target is at least `least`."""
    return Row(name, interval.value, interval, f"at least {least:g}", interval.value >= least, fmt, unit, note)


def fidelity_table(model: Model, result: Imagination) -> Table:
    """How good imagined futures of demonstrations are, for each query and horizon, and the codec's own ceiling."""
    rows = []
    for query in (q for q in ("joint", "video", "forward", "ceiling") if q in result.fidelity):
        part, episode = result.demonstrations(query)
        for offset in model.spec.frame_offsets:
            s = part.score(offset, episode, seed=0)
            if query == "ceiling":
                note = "the truth, written down and read back"
                rows.append(
                    Row(
                        f"ceiling of the codec, +{offset}", s.psnr, None, "at least 30", s.psnr >= 30, ".1f", "dB", note
                    )
                )
                rows.append(_sharpness("ceiling", s))
                continue
            note = "true actions given" if query == "forward" else "nothing given"
            note += f"; copying in brackets: PSNR {s.psnr:.1f} ({s.psnr_copy:.1f}) dB, SSIM {s.ssim:.3f} ({s.ssim_copy:.3f})"
            rows.append(_figure(f"{query}, +{offset}: skill over copying", s.skill, 0.65, "", note, ".3f"))
            note = f"better than copying; {s.moving_share:.0%} of pixels move; {s.windows} windows"
            rows.append(_figure(f"{query}, +{offset}: on moving pixels", s.moving_gain, 6, "dB", note, ".1f"))
            rows.append(_sharpness(query, s))
    for k, offset in enumerate(model.spec.frame_offsets if result.points is not None else ()):
        ratio = result.points_over_still(k)
        note = f"of points that move, in a policy query: {1000 * result.point_error(k):.1f} mm off on average"
        name = f"scene points, +{offset}: error / standing still"
        rows.append(Row(name, ratio.value, ratio, "at most 0.50", ratio.value <= 0.5, ".3f", note=note))
    how = "Skill is 1 for a perfect picture and 0 for a copy of the current frame. Demonstrations only."
    return Table("Is what it imagines right?", how, tuple(rows), VISUAL)


def _sharpness(query: str, s: Score) -> Row:
    note = "edges of what moves, imagined / real: 1 is as sharp, less is blurred"
    return Row(f"{query}, +{s.offset}: sharpness", s.sharpness.value, s.sharpness, fmt=".2f", note=note)


def coupling_table(result: Imagination) -> Table:
    """Whether imagination listens to the action, and whether actions are read off the future."""
    rows = []
    if result.action_sensitivity is not None:
        ratio = result.true_over_shuffled()
        note, met = "error on moving pixels, same noise; below 1 it listens", ratio.value <= 0.8 and ratio.excludes(1)
        rows.append(
            Row("forward dynamics, true / shuffled actions", ratio.value, ratio, "at most 0.80", met, ".3f", note=note)
        )
    if {"inverse", "policy"} <= set(result.action_error):
        ratio = result.inverse_over_policy()
        note = "against executed actions; below 1 it reads the future"
        rows.append(
            Row(
                "inverse dynamics / policy, action error",
                ratio.value,
                ratio,
                "below 1",
                ratio.value < 1,
                ".3f",
                note=note,
            )
        )
    how = "Ratios of two errors on the same windows; intervals resample whole episodes."
    return Table("Do picture and action belong together?", how, tuple(rows), ACTION)


def text_table(tables: Sequence[Table]) -> str:
    """The tables for a terminal."""
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
    """An end of an interval: too few cases leave it open."""
    return ("-∞" if x < 0 else "∞") if math.isinf(x) else f"{x:{fmt}}"


def json_row(table: Table, r: Row) -> dict[str, Any]:
    """One figure as JSON."""
    low, high = (float(r.interval.low), float(r.interval.high)) if r.interval else (None, None)
    return {
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
