"""Writer of a `Report` as one HTML page that opens offline, on a phone, in light and dark.

All text is escaped. Images, videos, styles and the script are inside the file, and a content policy forbids the browser
to fetch anything.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from wamkit.eval.metrics.intervals import wilson
from wamkit.eval.report.tables import bound
from wamkit.eval.results import (
    AXES,
    CLOSED_LOOP,
    VISUAL,
    Clip,
    ClosedLoop,
    Curves,
    Imagined,
    Plot,
    Report,
    Row,
    Still,
    Sweep,
    TaskResult,
    Worst,
)
from wamkit.files import atomic_write
from wamkit.viz.charts import curve_svg, interval_svg
from wamkit.viz.html import header, page, section, table
from wamkit.viz.images import DIFFERENCE_GAIN, data_uri, difference, enlarge, mp4, png, side_by_side
from wamkit.viz.style import SCRIPT

GAP = 2  # white columns between tiled images


def write_report(report: Report, path: str | os.PathLike[str]) -> Path:
    """Writes the page and returns its path. The file appears under its name only when it is complete.

    Raises WamkitError with the name of the file where the disk refuses.
    """
    path = Path(path)
    atomic_write(path, _page(report).encode())
    return path


def _page(report: Report) -> str:
    free = [section(t.title, t.how, [_table(t.rows)]) for t in report.tables if not t.axis]
    free += [section(p.title, p.how, [_plot(p)]) for p in report.plots if not p.axis]
    last = [
        section(
            "Learning curves",
            "Faint: each logged value. Strong: their moving average. Horizontal: training steps. Value axes "
            "with ticks at 1, 10, 100 are logarithmic. Still falling at the end means that more training would help.",
            [_curves(c) for c in report.curves],
        ),
        section(
            "How far it goes, and what it looks like",
            "Left: success over the severity of each factor, with its 95 % Wilson interval. Right: reset states as the "
            "policy sees them, by severity. The same reset state goes in one direction.",
            [_sweep(s, report.scale) for s in report.sweeps],
        ),
        section(
            "How it was made",
            "Run these again to get these figures again; seeds are in the configuration.",
            _provenance(report),
        ),
    ]
    cases = [w for w in report.worst if w.axis not in AXES]
    free.append(section("Cases", "One by one; the tables have the rates.", [_worst(w, report.scale) for w in cases]))
    sections = [*free, *(_axis(report, axis) for axis in AXES), *last]
    return page(report.title, _header(report) + "".join(sections), SCRIPT)


def _axis(report: Report, axis: str) -> str:
    """Sections of one axis: figures, images, worst cases. There is never an overall score."""
    sections = [section(t.title, t.how, [_table(t.rows)]) for t in report.tables if t.axis == axis]
    sections += [section(p.title, p.how, [_plot(p)]) for p in report.plots if p.axis == axis]
    if axis == CLOSED_LOOP:
        sections += _episodes(report)
    if axis == VISUAL:
        sections += _imagination(report)
    how = "Chosen because they are the worst, so not in proportion: the tables have the rates."
    sections.append(section("Worst cases", how, [_worst(w, report.scale) for w in report.worst if w.axis == axis]))
    content = "".join(sections)
    return f'\n<h2 class="axis">{escape(axis)}</h2>{content}' if content else ""


def _plot(plot: Plot) -> str:
    if not plot.more:
        return f"<figure>{plot.svg}</figure>"
    charts = {plot.name: plot.svg, **plot.more}
    figures = "".join(f"<figure><h4>{escape(name)}</h4>{svg}</figure>" for name, svg in charts.items())
    return f'<div class="curves">{figures}</div>'


def _imagination(report: Report) -> list[str]:
    return [
        section(
            "What it imagines, moving",
            "Left what happened, middle what the model imagined that many steps before, right their difference, "
            f"{DIFFERENCE_GAIN}x brighter: black is right. Look for the arm being where it should, then for blur.",
            [
                _imagined(title, list(clips), report.scale)
                for title, clips in groupby(report.imagined, lambda c: c.title)
            ],
        ),
        section(
            "What it imagines, frame by frame",
            "The first image is all the model saw. Then, for each horizon: what happened, what it imagined, and the "
            f"difference {DIFFERENCE_GAIN}x brighter.",
            [_still(s) for s in report.stills],
        ),
    ]


def _episodes(report: Report) -> list[str]:
    return [
        section(
            "In closed loop",
            "Episodes from reset states never trained on; success if the task's condition held at any step. The dot "
            "is the success rate on a 0-100 % line, the bar its 95 % Wilson interval, the tick the target. Steps: the "
            "median until success. Query: one call of the policy.",
            [_closed_loop(c) for c in report.closed_loop],
        ),
        section(
            "Episodes",
            f"The policy acting in the simulator: {_outcomes(report.clips)}. The table has the rates.",
            ['<div class="clips">' + "".join(_clip(c, report.scale) for c in report.clips) + "</div>"]
            if report.clips
            else [],
        ),
    ]


def _outcomes(clips: Sequence[Clip]) -> str:
    kinds = {clip.success for clip in clips}
    if len(kinds) == 2:
        return "successes and failures, chosen to show both, so not in proportion"
    return "successes alone, as no failure was found" if True in kinds else "failures alone, as no success was found"


def _worst(case: Worst, scale: int) -> str:
    frames = list(case.columns.values())
    video = _video(side_by_side(frames, GAP), case.fps, scale, f"{case.title}: {', '.join(case.columns)}")
    names = "".join(f"<span>{escape(name)}</span>" for name in case.columns)
    note = f"<figcaption>{escape(case.note)}</figcaption>" if case.note else ""
    labels = f'<div class="three" style="grid-template-columns:repeat({len(frames)},1fr)">{names}</div>'
    return f"<div><h3>{escape(case.title)}</h3><figure>{labels}{video}{note}</figure></div>"


def _header(report: Report) -> str:
    verdicts = Counter(r.verdict for t in report.tables for r in t.rows if r.target)
    told = f"{verdicts['met']} of {verdicts.total()} targets met"
    told += f", {n} not shown: too few cases" if (n := verdicts["not shown"]) else ""
    tally = f'<p class="tally">{told}</p>' if verdicts else ""
    heads = "".join(
        f'<div><dt>{escape(r.name)}</dt><dd class="big">{_value(r, "<small>{}</small>")}</dd><dd>{_range(r)}</dd>'
        f"<dd>{_target(r)} {_verdict(r)}</dd></div>"
        for r in report.headline
    )
    figures = f'<dl class="heads">{heads}</dl>' if heads else ""
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in report.verdict)
    verdict = f'<ul class="verdict">{sentences}</ul>' if sentences else ""
    return header(report.title, report.subtitle, tally, verdict + figures)


def _value(row: Row, unit: str = " {}") -> str:
    if isinstance(row.value, str):
        return escape(row.value)
    if math.isnan(row.value):
        return "undefined"
    return escape(f"{row.value:{row.fmt}}") + (unit.format(escape(row.unit)) if row.unit else "")


def _range(row: Row) -> str:
    if row.interval is None or row.interval.undefined:
        return ""
    return escape(" to ".join(bound(x, row.fmt) for x in (row.interval.low, row.interval.high)))


def _target(row: Row) -> str:
    return escape(row.target.words(row.fmt)) if row.target else ""


def _verdict(row: Row) -> str:
    kind = {"met": "met", "missed": "missed", "not shown": "unshown"}
    return f'<span class="{kind[row.verdict]}">{row.verdict}</span>' if row.verdict else ""


def _table(rows: Sequence[Row]) -> str:
    has_range, has_target = any(_range(r) for r in rows), any(r.target for r in rows)
    head = ["Figure", "Value", *["Interval"] * has_range, *["Target", ""] * has_target]
    body = []
    for row in rows:
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        cells = f'<tr><td class="what">{escape(row.name)}{note}</td><td class="num value">{_value(row)}</td>'
        if has_range:
            cells += f'<td class="num range">{_range(row)}</td>'
        if has_target:
            target = _target(row)
            cells += f"<td{_label('target', target)}>{target}</td>"
            cells += f'<td class="num">{_verdict(row)}</td>'
        body.append(f"{cells}</tr>")
    return table(head, body)


def _label(text: str, content: str) -> str:
    """Narrow screens show no table head, so a cell that needs its name carries it."""
    return f' data-label="{text}"' if content else ""


def _closed_loop(loop: ClosedLoop) -> str:
    rows = [_task(t, loop.target) for t in loop.tasks]
    if len(loop.tasks) > 1:
        pooled = TaskResult("All tasks", sum(t.successes for t in loop.tasks), sum(t.episodes for t in loop.tasks))
        rows.append(_task(pooled, None, "pooled"))
    head = ["Task", "Success", "", "Rate", "Interval", "Steps", "Query p50 / p95"]
    return f"<div><h3>{escape(loop.title)}</h3>{table(head, rows)}</div>"


def _task(task: TaskResult, target: float | None, kind: str = "") -> str:
    rate = wilson(task.successes, task.episodes)
    steps = "" if task.median_steps is None else f"{task.median_steps:.0f}"
    times = [f"{ms:.1f}" for ms in (task.latency_p50_ms, task.latency_p95_ms) if ms is not None]
    latency = " / ".join(times) + " ms" * bool(times)
    return (
        f'<tr class="{kind}"><td class="what task">{escape(task.task)}</td>'
        f'<td class="num">{task.successes}/{task.episodes}</td>'
        f'<td class="plot">{interval_svg(rate, target)}</td><td class="num value">{rate.value:.0%}</td>'
        f'<td class="num range">{rate.low:.0%} to {rate.high:.0%}</td>'
        f'<td class="num"{_label("steps", steps)}>{steps}</td>'
        f'<td class="num"{_label("query", latency)}>{latency}</td></tr>'
    )


def _video(frames: UInt8[np.ndarray, "T 3 H W"], fps: float, scale: int, label: str) -> str:
    poster = data_uri(png(enlarge(frames[len(frames) // 2], scale)), "image/png")
    height, width = frames.shape[2] * scale, frames.shape[3] * scale
    return (
        f'<video muted loop playsinline controls preload="metadata" width="{width}" height="{height}" '
        f'aria-label="{escape(label)}" poster="{poster}" '
        f'src="{data_uri(mp4(frames, fps, scale), "video/mp4")}"></video>'
    )


def _three(truth: str, imagined: str) -> str:
    """The labels above a triptych, in its columns."""
    names = f'<span class="re">{escape(truth)}</span><span class="im">{escape(imagined)}</span><span>difference</span>'
    return f'<div class="three">{names}</div>'


def _imagined(title: str, clips: Sequence[Imagined], scale: int) -> str:
    out = ""
    for c in clips:
        tiled = side_by_side([c.real, c.imagined, difference(c.real, c.imagined)], GAP)
        video = _video(tiled, c.fps, scale, f"{title}: happened, imagined {c.offset} steps ahead, difference")
        note = f"<figcaption>{escape(c.note)}</figcaption>" if c.note else ""
        out += f"<figure>{_three('happened', f'imagined +{c.offset}')}{video}{note}</figure>"
    return f'<div><h3>{escape(title)}</h3><div class="pairs">{out}</div></div>'


def _still(still: Still) -> str:
    cells, wide = [('<div class="three"><span>now</span></div>', still.now, f"{still.title}: now")], 1.0
    for offset, truth, imagined in zip(still.offsets, still.truth, still.imagined, strict=True):
        tiled = side_by_side([truth, imagined, difference(truth, imagined)], GAP)
        wide = tiled.shape[-1] / truth.shape[-1]
        names = _three(f"truth +{offset}", f"imagined +{offset}")
        cells.append((names, tiled, f"{still.title}: truth, imagined and difference at +{offset}"))
    figures = ""
    for names, image, alt in cells:
        source = data_uri(png(enlarge(image, 2)), "image/png")
        figures += f'<figure>{names}<img src="{source}" alt="{escape(alt)}"></figure>'
    style = f"grid-template-columns:1fr repeat({len(still.offsets)}, {wide:.3f}fr);--phone:1fr {wide:.3f}fr"
    return f'<div><h3>{escape(still.title)}</h3><div class="still" style="{style}">{figures}</div></div>'


def _clip(clip: Clip, scale: int) -> str:
    outcome = '<span class="met">success</span>' if clip.success else '<span class="missed">failed</span>'
    text = escape(" · ".join(x for x in (clip.title, clip.note) if x))
    video = _video(clip.frames, clip.fps, scale, clip.title)
    return f"<figure>{video}<figcaption>{outcome}<br>{text}</figcaption></figure>"


def _curves(curves: Curves) -> str:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in curves.rows:
        for key, value in row.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if key != "step" and number and "step" in row:
                steps, values = series.setdefault(key, ([], []))
                steps.append(float(row["step"]))
                values.append(float(value))
    panels = curves.panels if curves.panels is not None else {key: (key,) for key in series}
    charts = ""
    for title, keys in panels.items():
        shown = {key: series[key] for key in keys if key in series}
        if not shown:
            continue
        key = "".join(
            f'<span><i style="background:var(--s{i % 6 + 1})"></i>{escape(k)}</span>' for i, k in enumerate(shown)
        )
        legend = f'<div class="key">{key}</div>' if len(shown) > 1 else ""
        charts += f"<figure><h4>{escape(title)}</h4>{legend}{curve_svg(shown, curves.log)}</figure>"
    return f'<div><h3>{escape(curves.title)}</h3><div class="curves">{charts}</div></div>'


def _sweep(sweep: Sweep, scale: int) -> str:
    series = {sweep.factor: (sweep.severities, [x.value for x in sweep.success])}
    band = [x.low for x in sweep.success], [x.high for x in sweep.success]
    chart = curve_svg(series, log=False, over="severity", bounds=(0.0, 1.0), band=band)
    cells = "".join(f"<span>{s:g}</span>" for s in sweep.severities)
    for strip in sweep.strips:
        for severity, image in zip(sweep.severities, strip, strict=True):
            source, alt = data_uri(png(enlarge(image, scale)), "image/png"), f"{sweep.factor} {severity:g}"
            cells += f'<img src="{source}" alt="{escape(alt)}">'
    strips = f'<div class="strip" style="grid-template-columns:repeat({len(sweep.severities)}, 1fr)">{cells}</div>'
    title = f'<h3>{escape(sweep.factor)}</h3><p class="how">{escape(sweep.how)}</p>'
    return f'<div>{title}<div class="sweep"><figure>{chart}</figure>{strips if sweep.strips else ""}</div></div>'


def _provenance(report: Report) -> list[str]:
    parts = []
    if report.commands:
        parts.append(f'<div><h3>Commands</h3><pre class="commands">{escape(chr(10).join(report.commands))}</pre></div>')
    if report.versions:
        facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in report.versions.items())
        parts.append(f'<div><h3>Versions</h3><dl class="facts">{facts}</dl></div>')
    if report.config:
        text = escape(json.dumps(report.config, indent=2, default=str))
        parts.append(f"<details><summary>Resolved configuration</summary><pre>{text}</pre></details>")
    return parts
