"""HTML pages and SVG drawings as text: elements, the shell of a page, sections and tables.

Attributes are escaped here. Content is markup: escape text with `html.escape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from wamkit.viz.style import CSS, FILE_CSS


def element(tag: str, *content: str, **attributes: str | float) -> str:
    """One element. Attributes: `class_` is class, `text_anchor` is text-anchor; numbers are rounded to one decimal."""
    out = tag
    for name, value in attributes.items():
        text = escape(value) if isinstance(value, str) else f"{round(float(value), 1):g}"
        out += f' {name.rstrip("_").replace("_", "-")}="{text}"'
    return f"<{out}>{''.join(content)}</{tag}>" if content else f"<{out}/>"


def page(title: str, body: str, script: str = "") -> str:
    """A complete page in one file. Its security policy lets it load nothing, so it works offline."""
    policy = "default-src 'none'; img-src data:; media-src data: blob:; style-src 'unsafe-inline'"
    policy += "; script-src 'unsafe-inline'" * bool(script)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="generator" content="wamkit">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n"
        f"<body><main>{body}</main>{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )


def header(title: str, subtitle: str = "", *content: str) -> str:
    """The head of a page: its title, one sentence, and further content."""
    sentence = f'<p class="sub">{escape(subtitle)}</p>' if subtitle else ""
    return f"<header><h1>{escape(title)}</h1>{sentence}{''.join(content)}</header>"


def section(title: str, how: str, parts: Sequence[str]) -> str:
    """A section with its title and an explanation beside its parts; empty if there are no parts."""
    if not parts:
        return ""
    explanation = f'<p class="how">{escape(how)}</p>' if how else ""
    side = f"<div><h2>{escape(title)}</h2>{explanation}</div>"
    return f'\n<section>{side}<div class="body">{"".join(parts)}</div></section>'


def table(head: Sequence[str], rows: Sequence[str]) -> str:
    """A table. head: titles of the columns; empty for a table without a head.   rows: <tr> elements."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    top = f"<thead><tr>{titles}</tr></thead>" if head else ""
    return f"<table>{top}<tbody>{''.join(rows)}</tbody></table>"


def svg(width: float, height: float, content: Sequence[str], label: str, **attributes: str | float) -> str:
    """A drawing inside a page, as wide as its place. label: its content, for readers who cannot see it."""
    box = f"0 0 {width:g} {height:g}"
    return element("svg", *content, viewBox=box, role="img", aria_label=label, **attributes)


def svg_file(width: float, height: float, content: Sequence[str], label: str) -> str:
    """A drawing as a file of its own, in colours for light and dark surroundings."""
    style = element("style", FILE_CSS)
    place = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width:g} {height:g}", "width": width}
    return element("svg", style, *content, **place, role="img", aria_label=label) + "\n"


def line(kind: str, start: tuple[float, float], end: tuple[float, float]) -> str:
    """A straight line of a class of the style."""
    return element("line", class_=kind, x1=start[0], y1=start[1], x2=end[0], y2=end[1])


def polyline(kind: str, x: Sequence[float], y: Sequence[float], **attributes: str | float) -> str:
    """A line through points."""
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return element("polyline", class_=kind, points=points, **attributes)


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    """Words at a place; anchor: the part of them that stands there, start, middle or end."""
    return element("text", escape(words), x=x, y=y, text_anchor=anchor)
