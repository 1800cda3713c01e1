"""Observations, samples and episodes as HTML for notebooks: one element each, which loads nothing from elsewhere.

Only so much is shown that the element stays small, whatever it shows (`VIEWS`, `ROWS`, `SIDE`, `FRAMES`, `DIMENSIONS`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from jaxtyping import UInt8

from wamkit.types import Episode, Observation, Sample
from wamkit.viz.charts import Series, curve_svg
from wamkit.viz.html import element, svg, table
from wamkit.viz.images import data_uri, mp4, png, side_by_side

VIEWS, ROWS, STILLS, FRAMES, DIMENSIONS = 4, 4, 8, 64, 12
"""Most cameras, answers of a batch, images in a row, frames of a video, and dimensions of a vector that are shown."""

SIDE = 192
"""Pixels of the longest side of an image; larger ones are thinned out."""

TEXT = 300
"""Most characters of a text."""

_PIXELATED = "image-rendering:pixelated;height:128px;margin:0 4px 4px 0;display:inline-block"
_COLOURS = ("#3157d5", "#d0702a", "#12775a", "#8b4bc2", "#b3205f", "#6b7280")
_LINE = (120.0, 18.0)  # size of a drawing of one dimension over time


def show(thing: Observation | Sample | Episode) -> str:
    """The HTML that a notebook shows in place of an object's text: a single <div>, texts escaped."""
    parts = {Observation: _observation, Sample: _sample, Episode: _episode}[type(thing)](thing)  # type: ignore[operator]
    return element("div", element("b", type(thing).__name__), *parts, style="font-size:13px;line-height:1.5")


@dataclass(frozen=True)
class Shown:
    """HTML that a notebook shows as the value of a cell."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def video(frames: UInt8[np.ndarray, "T 3 H W"], fps: float) -> Shown:
    """Frames as a video that plays in a notebook at their own size, at most FRAMES of them.

    Raises EvaluationError as `images.mp4`.
    """
    step = max(1, math.ceil(len(frames) / FRAMES))
    return Shown(_player(mp4(frames[::step], fps / step), "max-width:100%"))


def curves(series: Mapping[str, Series]) -> Shown:
    """Learning curves in a notebook, name -> (steps, values); at most six."""
    colours = [f"--s{i}:{c}" for i, c in enumerate(_COLOURS, 1)]
    style = ";".join(["max-width:560px", "--soft:#6b7280", "--rule:#d8dde4", *colours])
    pairs = zip(series, _COLOURS, strict=False)
    names = [element("span", escape(n), style=f"color:{c};margin-right:12px") for n, c in pairs]
    lines = "<style>.wamkit-curves polyline{fill:none}.wamkit-curves .line{stroke-width:2}"
    lines += ".wamkit-curves .raw{opacity:.3}.wamkit-curves .grid{stroke:var(--rule)}"
    lines += ".wamkit-curves text{font-size:12px;fill:var(--soft)}</style>"
    return Shown(element("div", lines, *names, curve_svg(series), class_="wamkit-curves", style=style))


def _observation(obs: Observation) -> list[str]:
    images = () if obs.images is None else obs.images
    seen = [True] * len(images) if obs.view_valid is None else list(obs.view_valid)
    facts = {"text": obs.text, "proprio": _numbers(obs.proprio)}
    if not all(seen):
        facts["views not seen"] = ", ".join(str(i) for i, there in enumerate(seen) if not there)
    if obs.past:
        facts["past"] = f"{sum(p is not None for p in obs.past)} of {len(obs.past)} earlier moments"
    if obs.point_cloud is not None:
        facts["scene points"] = str(len(obs.point_cloud))
    return [_facts(facts), _row([np.asarray(image)[None] for image in images], "no images")]


def _sample(sample: Sample) -> list[str]:
    given = [x for x in (sample.future, sample.actions, sample.point_cloud) if x is not None]
    single = (5, 2, 3)  # axes of one answer's future, actions, scene points
    fields = (sample.future, sample.actions, sample.point_cloud)
    batched = any(x is not None and x.ndim > n for x, n in zip(fields, single, strict=True))
    count = len(given[0]) if batched else 1
    parts = [_facts({"query": str(sample.query)} | ({"answers": str(count)} if batched else {}))]
    for i in range(min(count, ROWS)):
        future, actions, points = (x[i] if batched and x is not None else x for x in fields)
        if batched:
            parts.append(element("div", f"answer {i}", style="margin-top:6px"))
        if future is not None:
            parts.append(_row(future, "no frames"))
        if actions is not None:
            parts.append(_series(actions, "action"))
        if points is not None:
            parts.append(element("div", f"{points.shape[1]} scene points in {len(points)} frames"))
    return [*parts, *_more(count - ROWS, "answers")]


def _episode(episode: Episode) -> list[str]:
    success = np.flatnonzero(episode.success)
    facts = {
        "task": episode.task,
        "text": episode.text,
        "length": f"{len(episode)} steps, {episode.fps:g} a second",
        "success": f"from step {success[0]} on" if len(success) else "no",
        "seed": str(episode.seed) if episode.seed >= 0 else "unknown",
        "noise": f"{episode.noise:g}" if episode.noise else "",
        "cameras": ", ".join(episode.cameras),
        "source": episode.source,
    }
    parts = [_facts({k: v for k, v in facts.items() if v})]
    if episode.images is None:
        parts.append(element("div", "no images"))
    else:
        parts.append(_video(episode.images, episode.fps))
    return [*parts, _series(episode.action, "action"), _series(episode.proprio, "proprio")]


def _video(images: np.ndarray, fps: float) -> str:
    """Frames (T, V, 3, H, W) as a video of at most FRAMES, at the speed of the recording."""
    if not _valid(images, 5):
        return _wrong(images)
    step = math.ceil(len(images) / FRAMES)
    return _player(mp4(_thin(images[::step]), max(fps, 1.0) / step))


def _player(content: bytes, style: str = _PIXELATED) -> str:
    source = data_uri(content, "video/mp4")
    return f'<video controls loop muted autoplay playsinline style="{style}" src="{source}"></video>'


def _row(frames: Iterable[np.ndarray], nothing: str) -> str:
    """Frames, each (V, 3, H, W) with its cameras side by side, in one row; their sizes may differ."""
    frames = list(frames)
    shown = [_image(frame) for frame in frames[:STILLS]] or [nothing]
    return element("div", *shown, *_more(len(frames) - STILLS, "images"))


def _image(frame: np.ndarray) -> str:
    if not _valid(frame, 4):
        return _wrong(frame)
    return element("img", src=data_uri(png(_thin(frame)), "image/png"), alt="image", style=_PIXELATED)


def _valid(images: Any, axes: int) -> bool:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != axes:
        return False
    return images.shape[-3] == 3 and images.size > 0


def _wrong(images: Any) -> str:
    """A note in place of what is no image."""
    found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
    return element("div", escape(f"no images, but {found}"))


def _thin(images: np.ndarray) -> np.ndarray:
    """Images (..., V, 3, H, W) with sides of at most SIDE, the first VIEWS of them side by side: (..., 3, h, wide)."""
    step = math.ceil(max(images.shape[-2:]) / SIDE)
    small = images[..., :VIEWS, :, ::step, ::step]
    return side_by_side([small[..., v, :, :, :] for v in range(small.shape[-4])])


def _series(values: np.ndarray, name: str) -> str:
    """A table of the dimensions of `values` (T, d): a line over time, first, least and largest value."""
    if not values.size:
        return ""
    shown = values[:, :DIMENSIONS].astype(float)
    rows = [_cells(f"{name} {i}", _line(v), *map(_number, (v[0], v.min(), v.max()))) for i, v in enumerate(shown.T)]
    more = _more(values.shape[1] - DIMENSIONS, "dimensions")
    return table(["", f"{len(values)} steps", "first", "least", "largest"], rows) + "".join(more)


def _line(values: np.ndarray) -> str:
    """Values over time as a line from edge to edge."""
    width, height = _LINE
    values = values[:: math.ceil(len(values) / 240)]
    if not np.isfinite(values).all():
        return "not finite"
    low, span = values.min(), np.ptp(values) or 1.0
    x = np.linspace(1, width - 1, len(values))
    y = height - 2 - (values - low) / span * (height - 4)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    line = element("polyline", points=points, fill="none", stroke="#3157d5", stroke_width=1.5)
    return svg(width, height, [line], "values over time", style=f"width:{width:g}px;height:{height:g}px")


def _facts(facts: dict[str, str]) -> str:
    """Names and texts in two columns; the texts are escaped, and shortened."""
    text = lambda s: escape(s if len(s) <= TEXT else s[: TEXT - 3] + "...")  # noqa: E731
    return table([], [_cells(escape(k), text(v) or "-") for k, v in facts.items()])


def _cells(*content: str) -> str:
    """A row of a table."""
    return element("tr", *(element("td", x, style="padding:1px 12px 1px 0;text-align:left") for x in content))


def _numbers(values: Sequence[float] | np.ndarray) -> str:
    more = f", {len(values) - DIMENSIONS} more" if len(values) > DIMENSIONS else ""
    return ", ".join(_number(v) for v in values[:DIMENSIONS]) + more


def _number(value: Any) -> str:
    return f"{float(value):.3g}"


def _more(count: int, of: str) -> list[str]:
    return [element("div", f"and {count} more {of}")] if count > 0 else []
