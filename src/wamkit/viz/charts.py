"""Charts as SVG: learning curves, intervals, scatter plots, rates, panels.

Those inside a page (`*_svg`) take their colours from its style, for light and dark screens. Those that are files of
their own (`*_file`) bring theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from wamkit.types import Interval
from wamkit.viz.html import element, line, polyline, svg, svg_file, text

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 26
POINTS = 300  # longer series are averaged down to so many points: more would share pixels
SMOOTH_FROM = 40  # shorter series (one value an evaluation, say) are drawn as they are, with dots
COLOURS = 6

Series = tuple[Sequence[float], Sequence[float]]
"""Positions and values of a line, finite, with ascending positions."""


def curve_svg(
    series: Mapping[str, Series],
    log: bool | None = None,
    *,
    over: str = "training steps",
    bounds: tuple[float, float] | None = None,
    band: tuple[Sequence[float], Sequence[float]] | None = None,
) -> str:
    """Lines over training steps, name -> (steps, values). At most six, each in its colour.

    A long series is drawn twice: faint as it is (averaged to POINTS) and strong when smoothed, as logarithms if all
    values are positive.
    log: logarithmic value axis; None chooses it where all values are positive and span a factor of eight.
    over: name of the horizontal axis.
    bounds: range of the value axis; that of the values if not given.
    band: lower and upper edge of a faint area around the first series, which must have at most POINTS values.
    """
    binned = {name: _bins(np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in series.items()}
    positive = all((y > 0).all() for _, y in binned.values())
    smooth = {name: np.exp(_smooth(np.log(y))) if positive else _smooth(y) for name, (_, y) in binned.items()}
    inner = np.concatenate([np.quantile(np.concatenate([y, smooth[n]]), (0.01, 0.99)) for n, (_, y) in binned.items()])
    low, high = bounds or (float(inner.min()), float(inner.max()))
    if log is None:
        log = positive and low > 0 and high / low >= 8
    place_y, ticks = _value_axis(low, high, log)
    last = max(float(x[-1]) for x, _ in binned.values()) or 1.0

    def place_x(x: np.ndarray | float) -> np.ndarray | float:
        return LEFT + x / last * (WIDTH - LEFT - RIGHT)

    parts = []
    for tick in ticks:
        y = place_y(tick)
        parts += [line("grid", (LEFT, y), (WIDTH - RIGHT, y)), text(LEFT - 7, y + 4, _number(tick), "end")]
    parts += [text(place_x(tick), HEIGHT - 7, _number(tick), "middle") for tick in _ticks(0.0, last, 4)]
    if band is not None:
        x = place_x(next(iter(binned.values()))[0])
        edges = np.concatenate([place_y(np.asarray(band[0], float)), place_y(np.asarray(band[1], float))[::-1]])
        corners = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(np.concatenate([x, x[::-1]]), edges, strict=True))
        parts.append(element("polygon", class_="band", points=corners))
    for i, (name, (x, y)) in enumerate(binned.items()):
        colour, x = f"var(--s{i % COLOURS + 1})", place_x(x)
        if len(y) >= SMOOTH_FROM:
            parts.append(polyline("raw", x, place_y(y), style=f"stroke:{colour}"))
        parts.append(polyline("line", x, place_y(smooth[name]), style=f"stroke:{colour}"))
        if len(y) < SMOOTH_FROM:
            dots = zip(x, place_y(y), strict=True)
            parts += [element("circle", cx=a, cy=b, r=2.6, style=f"fill:{colour}") for a, b in dots]
    return svg(WIDTH, HEIGHT, parts, f"{', '.join(series)} over {over}", class_="curve")


def interval_svg(rate: Interval, target: float | None = None) -> str:
    """A rate in [0, 1] as a dot on a line from 0 to 100 %, its interval as a bar, the target as a tick."""
    low, value, high = (3 + 194 * min(max(v, 0.0), 1.0) for v in (rate.low, rate.value, rate.high))
    parts = [line("axis", (3, 9), (197, 9)), line("bar", (low, 9), (high, 9))]
    if target is not None:
        parts.append(line("target", (3 + 194 * target, 1), (3 + 194 * target, 17)))
    parts.append(line("dot", (value, 9), (value, 9)))
    return element(
        "svg", *parts, class_="interval", viewBox="0 0 200 18", preserveAspectRatio="none", aria_hidden="true"
    )


def scatter_svg(points: Sequence[tuple[str, Interval, Interval]], across: str, up: str) -> str:
    """Rates in [0, 1] against each other, (name, across, up), with bars for intervals and the line of equal rates."""
    side = HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + side * min(max(x, 0.0), 1.0), HEIGHT - BOTTOM - side * min(max(y, 0.0), 1.0)

    parts = [line("grid", place(0, 0), place(1, 1))]
    for tick in (0.0, 0.5, 1.0):
        (x, bottom), (left, y) = place(tick, 0), place(0, tick)
        parts += [line("grid", place(tick, 0), place(tick, 1)), line("grid", place(0, tick), place(1, tick))]
        parts += [text(x, bottom + 16, f"{tick:.0%}", "middle"), text(left - 7, y + 4, f"{tick:.0%}", "end")]
    for name, x, y in points:
        parts.append(line("grid", place(x.low, y.value), place(x.high, y.value)))
        parts.append(line("grid", place(x.value, y.low), place(x.value, y.high)))
        title = element("title", escape(f"{name}: {x.value:.0%}, {y.value:.0%}"))
        centre = place(x.value, y.value)
        parts.append(element("circle", title, cx=centre[0], cy=centre[1], r=4, style="fill:var(--s1)"))
    right, top = place(1, 1)
    parts += [text(right + 12, top + 10, f"up: {up}"), text(right + 12, top + 28, f"across: {across}")]
    return svg(WIDTH, HEIGHT, parts, f"{up} against {across}", class_="curve")


def rates_file(rows: Mapping[str, tuple[Interval, Sequence[float]]], label: str) -> str:
    """Rates in [0, 1], a row each: name -> (the rate as a dot with its interval, single rates as small circles)."""
    left, width, row_height = 270, 760, 24
    height = row_height * len(rows) + 40

    def place(rate: float) -> float:
        return left + rate * (width - left - 30)

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(line("grid", (place(tick), 8), (place(tick), height - 26)))
        parts.append(text(place(tick), height - 8, f"{tick:.0%}", "middle"))
    for i, (name, (rate, singles)) in enumerate(rows.items()):
        y = 20 + row_height * i
        parts += [text(left - 12, y + 4, name, "end"), line("bar", (place(rate.low), y), (place(rate.high), y))]
        parts += [element("circle", class_="seed", cx=place(single), cy=y, r=3) for single in singles]
        parts.append(element("circle", class_="dot", cx=place(rate.value), cy=y, r=4.5))
    return svg_file(width, height, parts, label)


def panels_file(curves: Mapping[str, Sequence[Series]], label: str, columns: int = 4) -> str:
    """Positive values over steps, a panel a name, on one logarithmic scale. Grey in each: the lines of the first."""
    width, height = 190, 120
    values = np.concatenate([v for lines in curves.values() for _, v in lines])
    low, high = math.log(values.min()), math.log(values.max()) + 1e-9
    last = max(steps[-1] for lines in curves.values() for steps, _ in lines)

    def draw(kind: str, steps: Sequence[float], points: Sequence[float]) -> str:
        x = [42 + s / last * (width - 52) for s in steps]
        y = [22 + (high - math.log(v)) / (high - low) * (height - 44) for v in points]
        return polyline(kind, x, y)

    first = [draw("other", *series) for series in next(iter(curves.values()))]
    axis = [line("grid", (42, height - 22), (width - 10, height - 22))]
    axis += [text(38, y, f"{math.exp(v):.2g}", "end") for y, v in ((28, high), (height - 20, low))]
    panels = []
    for i, (name, lines) in enumerate(curves.items()):
        place = f"translate({width * (i % columns)} {height * (i // columns)})"
        own = [draw("line", *series) for series in lines]
        panels.append(element("g", text(42, 14, name), *axis, *first, *own, transform=place))
    return svg_file(width * columns, height * math.ceil(len(curves) / columns), panels, label)


def _value_axis(low: float, high: float, log: bool) -> tuple[Callable[[np.ndarray | float], Any], list[float]]:
    """The height of a value in a chart, and the ticks, for an axis a little longer than from low to high."""
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
    margin = 0.06 * (high - low)
    low, high = (low / 1.12, high * 1.12) if log else (low - margin, high + margin)

    def place(y: np.ndarray | float) -> Any:
        y = np.clip(y, low, high)
        share = (np.log(y) - math.log(low)) / math.log(high / low) if log else (y - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    return place, _log_ticks(low, high) if log else _ticks(low, high, 4)


def _bins(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = math.ceil(len(x) / POINTS)
    groups = [slice(i, i + size) for i in range(0, len(x), size)]
    return np.array([x[g].mean() for g in groups]), np.array([y[g].mean() for g in groups])


def _smooth(y: np.ndarray) -> np.ndarray:
    """A centred Gaussian average over about a thirtieth of the series: unlike a running one, it does not lag."""
    if len(y) < SMOOTH_FROM:
        return y
    reach = len(y) // 15
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (reach / 3)) ** 2)
    weights = np.convolve(np.ones(len(y)), kernel)[reach:-reach]  # the ends have neighbours on one side only
    return np.convolve(y, kernel)[reach:-reach] / weights


def _ticks(low: float, high: float, about: int) -> list[float]:
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1,), (1, 3), (1, 2, 5)):
        ticks = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
        if len(ticks) >= 3:
            return ticks
    return ticks or _ticks(low, high, 4)


def _number(value: float) -> str:
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:.3g}"
