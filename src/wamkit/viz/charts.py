"""Inline SVG: learning curves and interval marks. Colours come from the page's CSS variables, so both themes work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from wamkit.types import Interval

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 26
POINTS = 300  # more points per line than this are averaged together: they would share pixels
SMOOTH_FROM = 40  # shorter series (one value per evaluation, say) are drawn as they are, with dots


def curve_svg(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    log: bool | None = None,
    *,
    over: str = "training steps",
    bounds: tuple[float, float] | None = None,
    band: tuple[Sequence[float], Sequence[float]] | None = None,
) -> str:
    """Lines over training steps: name -> (steps, values), finite, ascending in steps. At most six, each a colour.

    Long series show a faint raw line (averaged to POINTS) under a strong smooth one (smoothed as logarithms if all
    values are positive). log: value axis; None takes logarithms when all are positive and span a factor of eight.
    over: what the other axis is.   bounds: of the values shown, in place of their own.   band: lower and upper edge of a faint area
    around the first series, which must have at most POINTS values.
    """
    binned = {name: _bins(np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in series.items()}
    positive = all((y > 0).all() for _, y in binned.values())
    smooth = {name: np.exp(_smooth(np.log(y))) if positive else _smooth(y) for name, (_, y) in binned.items()}
    core = np.concatenate([np.quantile(np.concatenate([y, smooth[n]]), (0.01, 0.99)) for n, (_, y) in binned.items()])
    low, high = bounds or (float(core.min()), float(core.max()))
    if log is None:
        log = positive and high / low >= 8
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
    if log:
        low, high = low / 1.12, high * 1.12
    else:
        low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)
    last = max(float(x[-1]) for x, _ in binned.values()) or 1.0

    def place_x(x: np.ndarray | float) -> np.ndarray | float:
        return LEFT + x / last * (WIDTH - LEFT - RIGHT)

    def place_y(y: np.ndarray | float) -> np.ndarray | float:
        y = np.clip(y, low, high)
        share = (np.log(y) - math.log(low)) / math.log(high / low) if log else (y - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in _log_ticks(low, high) if log else _ticks(low, high, 4):
        y = place_y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in _ticks(0.0, last, 4):
        parts.append(f'<text x="{place_x(tick):.1f}" y="{HEIGHT - 7}" text-anchor="middle">{_number(tick)}</text>')
    if band is not None:
        x = next(iter(binned.values()))[0]
        edge = np.concatenate([place_y(np.asarray(band[0], float)), place_y(np.asarray(band[1], float))[::-1]])
        corners = zip(np.concatenate([place_x(x), place_x(x)[::-1]]), edge, strict=True)
        parts.append(f'<polygon class="band" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}"/>')
    for i, (name, (x, y)) in enumerate(binned.items()):
        colour = f"--s{i % 6 + 1}"
        if len(y) >= SMOOTH_FROM:
            parts.append(_line(place_x(x), place_y(y), colour, "raw"))
        parts.append(_line(place_x(x), place_y(smooth[name]), colour, "line"))
        if len(y) < SMOOTH_FROM:
            dots = zip(place_x(x), place_y(y), strict=True)
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" style="fill:var({colour})"/>' for a, b in dots]
    names = escape(", ".join(series))
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{names} over {escape(over)}">'
        f"{''.join(parts)}</svg>"
    )


def interval_svg(rate: Interval, target: float | None = None) -> str:
    """A rate in [0, 1] as a dot on a 0-100 % line, its interval as a bar, the target as a tick."""
    x = [3 + 194 * min(max(v, 0.0), 1.0) for v in (rate.low, rate.value, rate.high)]
    tick = (
        ""
        if target is None
        else f'<line class="target" x1="{3 + 194 * target:.1f}" x2="{3 + 194 * target:.1f}" y1="1" y2="17"/>'
    )
    return (
        '<svg class="interval" viewBox="0 0 200 18" preserveAspectRatio="none" aria-hidden="true">'
        '<line class="axis" x1="3" x2="197" y1="9" y2="9"/>'
        f'<line class="bar" x1="{x[0]:.1f}" x2="{x[2]:.1f}" y1="9" y2="9"/>{tick}'
        f'<line class="dot" x1="{x[1]:.1f}" x2="{x[1]:.1f}" y1="9" y2="9"/></svg>'
    )


def scatter_svg(points: Sequence[tuple[str, Interval, Interval]], across: str, up: str) -> str:
    """Rates in [0, 1] against each other, (name, across, up) with bars for their intervals, and the line where both are equal."""
    side = HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + side * min(max(x, 0.0), 1.0), HEIGHT - BOTTOM - side * min(max(y, 0.0), 1.0)

    def line(kind: str, a: tuple[float, float], b: tuple[float, float]) -> str:
        return f'<line class="{kind}" x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}"/>'

    parts = [line("grid", place(0, 0), place(1, 1))]
    for tick in (0.0, 0.5, 1.0):
        (x, bottom), (left, y) = place(tick, 0), place(0, tick)
        parts += [line("grid", place(tick, 0), place(tick, 1)), line("grid", place(0, tick), place(1, tick))]
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{tick:.0%}</text>')
        parts.append(f'<text x="{left - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:.0%}</text>')
    for name, x, y in points:
        dot = place(x.value, y.value)
        parts += [line("grid", place(x.low, y.value), place(x.high, y.value))]
        parts += [line("grid", place(x.value, y.low), place(x.value, y.high))]
        title = f"<title>{escape(name)}: {x.value:.0%}, {y.value:.0%}</title>"
        parts.append(f'<circle cx="{dot[0]:.1f}" cy="{dot[1]:.1f}" r="4" style="fill:var(--s1)">{title}</circle>')
    right, top = place(1, 1)
    parts.append(f'<text x="{right + 12:.1f}" y="{top + 10:.1f}">up: {escape(up)}</text>')
    parts.append(f'<text x="{right + 12:.1f}" y="{top + 28:.1f}">across: {escape(across)}</text>')
    label = escape(f"{up} against {across}")
    return f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _line(x: np.ndarray, y: np.ndarray, colour: str, kind: str) -> str:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return f'<polyline class="{kind}" style="stroke:var({colour})" points="{points}"/>'


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
