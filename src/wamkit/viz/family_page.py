"""A family on one screen: its place in the taxonomy, its parts, and the attention layout of its token sequence."""

from __future__ import annotations

from wamkit.families.base import Family
from wamkit.nn.attention_mask import Segment
from wamkit.viz.html import element, svg_file
from wamkit.viz.html import text as words

CLEAN, NOISY, OTHER, NONE = "#2a78d6", "#e08a2b", "#8a8a86", "none"
"""Colours of a square: clean tokens and context, noisy tokens, other tokens, no attention."""


def label(segment: Segment) -> str:
    """A segment's content in a few words: clean or noisy, its stream, its moment, its target."""
    state = "clean " if segment.clean else "noisy " if segment.stream in ("future", "action") else ""
    when = f", {-segment.moment} steps ago" if segment.moment else ""
    return f"{state}{segment.stream}{when}" + (f", target {segment.problem}" if segment.problem else "")


def text(model: Family) -> str:
    """The page for a terminal. A filled square: the tokens of the row attend to those of the column."""
    taxonomy, segments, attends = model.taxonomy, *model.attention_layout()
    parts: dict[str, int] = {}
    for name, p in model.named_parameters():
        part = name.split(".")[0]
        parts[part] = parts.get(part, 0) + p.numel()
    lines = [
        f"{model.name}: {taxonomy.leaf}",
        f"  future            {taxonomy.modality}",
        f"  conditioning      {taxonomy.conditioning}",
        f"  action decoder    {taxonomy.decoder}",
        f"  gradients         {taxonomy.gradient}",
        f"  queries           {', '.join(sorted(model.queries))}",
        f"  training stages   {', '.join(f'{s.name} {s.share:.0%}' for s in model.stages())}",
        f"  parameters        {sum(parts.values()):,}: {', '.join(f'{k} {n:,}' for k, n in parts.items())}",
        "",
        "  attention: the tokens of a row attend to those of a column",
    ]
    wide = max(len(label(s)) for s in segments)
    for i, (segment, row) in enumerate(zip(segments, attends.tolist(), strict=True), 1):
        squares = " ".join("■" if x else "·" for x in row)
        lines.append(f"  {i} {label(segment):<{wide}} {segment.length:>4} tokens   {squares}")
    return "\n".join(lines)


def layout_file(model: Family) -> str:
    """The attention layout as an SVG file: clean tokens and context in blue, noisy ones in orange, others in grey."""
    segments, attends = model.attention_layout()
    cell, left, top = 34, 230, 60
    size = cell * len(segments)
    parts = [words(12, 24, f"{model.name}: attention layout")]
    for i, row in enumerate(segments):
        y = top + i * cell
        parts.append(words(12, y + 22, f"{i + 1}  {label(row)} ({row.length})"))
        parts.append(words(left + i * cell + 12, top - 8, str(i + 1)))
        for k, column in enumerate(segments):
            fill, x = _colour(column) if attends[i, k] else NONE, left + k * cell
            place = {"x": x + 1, "y": y + 1, "width": cell - 2, "height": cell - 2, "rx": 3}
            parts.append(element("rect", class_="grid", fill=fill, **place))
    note = "rows attend to columns; number of tokens in brackets"
    parts.append(words(12, top + size + 20, note))
    return svg_file(left + size + 20, top + size + 30, parts, f"Attention layout of {model.name}")


def _colour(segment: Segment) -> str:
    if segment.stream in ("context", "now", "text"):
        return CLEAN
    if segment.stream in ("future", "action"):
        return CLEAN if segment.clean else NOISY
    return OTHER
