"""Draws the figures of docs/concepts.md: `python tools/figures.py` writes docs/figures/*.svg.

The attention figure is computed by `wamkit.nn.attention_mask`, so it shows the masks that training uses. A test
compares the committed files with what this script makes. Both are drawn for a screen of 390 pixels, light and dark.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from wamkit.nn.attention_mask import ACTION, CONTEXT, FUTURE, TEACHER_FORCED, Program, Segment, visibility

FOLDER = Path(__file__).parents[1] / "docs/figures"
WIDTH = 400
STREAMS = {s[0]: s for s in (CONTEXT, FUTURE, ACTION)}
STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
  .small { font-size: 11px; fill: #59636e }
  .code { font: 11px ui-monospace, "DejaVu Sans Mono", monospace; fill: #59636e }
  .bold { font-weight: 600 }
  .middle { text-anchor: middle }
  .box { fill: #f3f5f7; stroke: #8c959f }
  .disk { fill: #fff4d6; stroke: #b58a1b }
  .line { fill: none; stroke: #7a838d; stroke-width: 1.5 }
  .head { fill: #7a838d }
  .context { fill: #6e7781 } .future { fill: #1f6feb } .action { fill: #d1570a } .none { fill: #8c959f22 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small, .code { fill: #a3adb8 }
    .box { fill: #21262d; stroke: #6e7781 } .disk { fill: #3a2f10; stroke: #b58a1b }
    .context { fill: #9aa4ae } .future { fill: #58a6ff } .action { fill: #f0883e }
  }
"""


def svg(title: str, body: list[str], height: int) -> str:
    """A drawing that scales down with the page, named for those who cannot see it."""
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", *body, "</svg>\n"])


def label(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(text)}</text>'


def arrow(*points: tuple[float, float]) -> str:
    """A line through `points` with a head at the last one; the last stretch is horizontal or vertical."""
    (x0, y0), (x, y) = points[-2:]
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    head = (
        f"{x:g},{y:g} {x - 7 * dx + 4 * dy:g},{y - 7 * dy + 4 * dx:g} {x - 7 * dx - 4 * dy:g},{y - 7 * dy - 4 * dx:g}"
    )
    line = " ".join(f"{a:g},{b:g}" for a, b in points)
    return f'<polyline class="line" points="{line}"/><polygon class="head" points="{head}"/>'


TRAINING = (
    ("Importers, collection", "data/importers, rollout", "Episode"),
    ("Data set on disk", "data/format", "Frames"),
    ("Windows", "data/loading", "one per row"),
    ("Batch, raw units", "types", ""),
    ("Normalizer, tokens", "nn", ""),
    ("Family.forward", "families", ""),
    ("Losses, one value a row", "families", ""),
    ("Trainer", "training", "checkpoints"),
    ("Run folder", "runs", ""),
)
ACTING = (
    ("Observation", "envs", ""),
    ("Model.sample", "inference", "action chunk"),
    ("Policy.act", "inference", "one action"),
    ("env.step", "envs", ""),
    ("Episode", "rollout", ""),
    ("Metrics", "eval/metrics", ""),
    ("Report", "eval/report", ""),
)
ON_DISK = {"Data set on disk", "Run folder", "Report"}


def pipeline() -> str:
    """From recordings to a run on the left, from an observation to a report on the right."""
    left, right, wide, high, pitch, top = 4, 204, 174, 40, 60, 34
    out = [label(left, 18, "Training", "bold"), label(right, 18, "Acting and evaluation", "bold")]
    for x, boxes in ((left, TRAINING), (right, ACTING)):
        for row, (name, room, flow) in enumerate(boxes):
            y = top + row * pitch
            kind = "disk" if name in ON_DISK else "box"
            out.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{wide}" height="{high}" rx="6"/>')
            out += [label(x + 10, y + 17, name), label(x + 10, y + 32, room, "code")]
            if row + 1 < len(boxes):
                out.append(arrow((x + wide / 2, y + high), (x + wide / 2, y + pitch)))
                out.append(label(x + wide / 2 + 8, y + high + 14, flow, "small"))
    middle = (left + wide + right) / 2
    run, model = top + 8 * pitch + high / 2, top + pitch + high / 2
    out.append(arrow((left + wide, run), (middle, run), (middle, model), (right, model)))
    first, last, edge = top + high / 2, top + 3 * pitch + high / 2, right + wide
    out.append(arrow((edge, last), (edge + 16, last), (edge + 16, first), (edge, first)))
    y = top + 7 * pitch + 10
    for k, line in enumerate(
        ("The same loop records", "demonstrations, evaluates", "policies, and runs inside", "a world model.")
    ):
        out.append(label(right + 10, y + 15 * k, line, "small"))
    return svg("The pipeline: from recordings to a run, and from an observation to a report", out, top + 9 * pitch - 8)


def sequence(program: Program) -> list[Segment]:
    """The training sequence of `unified` with two tokens a segment: one context, the policy's problem, the joint's."""
    out = [Segment(CONTEXT, 2), Segment(ACTION, 2), Segment(FUTURE, 2, problem=1), Segment(ACTION, 2, problem=1)]
    first = TEACHER_FORCED.get(program)
    return out + ([Segment(first, 2, clean=True, problem=1)] if first else [])


def summary(program: Program) -> str:
    """The part of the mask that programs differ in, read from the mask: which tokens action and future attend to."""
    segments = sequence(program)
    mask = visibility([Segment(s.stream, 1, s.clean, s.problem) for s in segments], program)
    found = [
        f"{q.stream} attends to {'clean' if k.clean else 'noisy'} {k.stream}"
        for i, q in enumerate(segments)
        for j, k in enumerate(segments)
        if q.problem == k.problem == 1 and q.stream != k.stream and mask[i, j]
    ]
    return "each attends to the other" if len(found) == 2 else (found or ["neither attends to the other"])[0]


def tokens(segments: list[Segment], x: float, y: float, cell: float, down: bool) -> list[str]:
    """A letter a token, along the top of a matrix or down its side; clean copies are ringed."""
    out, place = [], 0
    for s in segments:
        for _ in range(s.length):
            cx, cy = (x, y + (place + 0.5) * cell) if down else (x + (place + 0.5) * cell, y)
            out.append(f'<text x="{cx:g}" y="{cy + 4:g}" class="middle bold {s.stream}">{s.stream[0]}</text>')
            if s.clean:
                out.append(f'<circle cx="{cx:g}" cy="{cy:g}" r="{cell * 0.46:g}" class="line"/>')
            place += 1
    return out


def matrix(program: Program, x: float, y: float, cell: float = 15) -> list[str]:
    """The mask of one program: a row a token that attends, a column a token that is attended to."""
    segments = sequence(program)
    mask = visibility(segments, program).tolist()
    streams = [s.stream for s in segments for _ in range(s.length)]
    out = [label(x, y + 12, program.value, "bold"), label(x, y + 28, summary(program), "small")]
    x, y = x + 18, y + 56
    out += tokens(segments, x, y - 10, cell, down=False) + tokens(segments, x - 10, y, cell, down=True)
    for i, row in enumerate(mask):
        for j, seen in enumerate(row):
            place = f'x="{x + j * cell + 1:g}" y="{y + i * cell + 1:g}"'
            kind = streams[j] if seen else "none"
            out.append(f'<rect class="{kind}" {place} width="{cell - 2:g}" height="{cell - 2:g}" rx="2"/>')
    return out


def programs() -> str:
    """One sequence of tokens under each of the six programs."""
    out = [label(4, 16, "One training sequence", "bold")]
    x = 4
    for letters, name, wide in (
        ("cc", "context", 70),
        ("aa", "problem 0", 84),
        ("ffaa", "problem 1", 118),
        ("ff", "clean copy", 98),
    ):
        out.append(f'<rect class="box" x="{x}" y="26" width="{wide}" height="40" rx="6"/>')
        spans = [f'<tspan class="bold {STREAMS[c]}">{c} </tspan>' for c in letters]
        out.append(f'<text x="{x + wide / 2}" y="43" class="middle">{"".join(spans)}</text>')
        out.append(label(x + wide / 2, 59, name, "small middle"))
        x += wide + 7
    lines = (
        "c context, f future, a action; a ring marks a clean copy.",
        "Problem 0 trains the policy, problem 1 a conditional of the joint.",
        "Row: the token that attends. Column: what it attends to.",
        "Coloured: attends. Pale: does not.",
    )
    out += [label(4, 86 + 16 * k, line, "small") for k, line in enumerate(lines)]
    pitch, top = 200, 152
    for k, program in enumerate(Program):
        out += matrix(program, 4 + 204 * (k % 2), top + pitch * (k // 2))
    return svg("Attention masks of the six programs over one training sequence", out, top + 3 * pitch + 24)


FIGURES = {"pipeline.svg": pipeline, "programs.svg": programs}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        (FOLDER / name).write_text(draw())
