"""A family on one screen: its place in the taxonomy, its parts, and the attention layout of its token sequence."""

from __future__ import annotations

from html import escape

from wamkit.families.base import Family
from wamkit.nn.attention_mask import Segment

CLEAN, NOISY, OTHER, NONE = "#2a78d6", "#e08a2b", "#8a8a86", "#eee"
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


def layout_svg(model: Family) -> str:
    """The attention layout as a drawing: clean tokens and context in blue, noisy ones in orange, others in grey."""
    segments, attends = model.attention_layout()
    cell, left, top = 34, 230, 60
    size = cell * len(segments)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + size + 20} {top + size + 30}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#333">',
        '<rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="12" y="24" font-size="15">{escape(model.name)}: attention layout</text>',
    ]
    for i, row in enumerate(segments):
        y = top + i * cell
        out.append(f'<text x="12" y="{y + 22}">{i + 1}  {escape(label(row))} ({row.length})</text>')
        out.append(f'<text x="{left + i * cell + 12}" y="{top - 8}">{i + 1}</text>')
        for k, column in enumerate(segments):
            fill, x = _colour(column) if attends[i, k] else NONE, left + k * cell
            out.append(f'<rect x="{x + 1}" y="{y + 1}" width="{cell - 2}" height="{cell - 2}" rx="3" fill="{fill}"/>')
    note = "the tokens of a row attend to those of a column; number of tokens in brackets"
    out.append(f'<text x="12" y="{top + size + 20}" fill="#777">{note}</text></svg>')
    return "\n".join(out) + "\n"


def _colour(segment: Segment) -> str:
    if segment.stream in ("context", "now", "text"):
        return CLEAN
    if segment.stream in ("future", "action"):
        return CLEAN if segment.clean else NOISY
    return OTHER
