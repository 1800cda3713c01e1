"""What a family is, on one screen: its leaf, its questions, its parts, and who sees whom in a training sequence."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import torch

from wamkit.config import nearest
from wamkit.data.importers import IMPORTERS
from wamkit.envs import ENVIRONMENTS
from wamkit.eval.protocols import PROTOCOLS
from wamkit.experiments.comparisons import COMPARISONS
from wamkit.families.base import FAMILIES, Family
from wamkit.files import atomic_write
from wamkit.inference.model import load
from wamkit.nn.attention_mask import Segment
from wamkit.nn.normalizer import Normalizer
from wamkit.registry import load_package
from wamkit.runs.config import RunConfig, family_class
from wamkit.runs.recipes import RECIPES
from wamkit.types import Spec, WamkitError

EXAMPLE = Spec(cameras=("corner",), height=64, width=64, proprio_dim=4, action_dim=4, point_grid=32)
"""The shapes that families and recipes are shown at; a run has its own."""


def model_of(name: str) -> Family:
    """The model of a run folder, or, without memory behind its weights, that of a recipe or of a family's defaults."""
    load_package("wamkit.families")
    if Path(name).is_dir():
        return load(name).family
    if name in RECIPES:
        run = RECIPES.get(name)()
    elif name in FAMILIES:
        run = RunConfig(name, family_class(name).Config())
    else:
        raise WamkitError(
            f"'{name}' is no family, recipe or run folder; families: {', '.join(FAMILIES.names())}; recipes: {', '.join(RECIPES.names())}"
        )
    spec = Spec(**{**vars(EXAMPLE), "chunk": run.window.chunk, "past_offsets": run.window.past_offsets})
    with torch.device("meta"):
        sizes = {"proprio": spec.proprio_dim, "action": spec.action_dim}
        numbers = Normalizer({k: (torch.zeros(n), torch.ones(n)) for k, n in sizes.items()})
        return family_class(run.family)(run.model, spec, numbers)


AXES = {
    "leaf": "leaf of the survey's taxonomy",
    "modality": "what the future is made of",
    "conditioning": "how imagination and action meet",
    "decoder": "how actions come out",
    "gradient": "where gradients go",
}


def by_axis(axis: str) -> dict[str, list[str]]:
    """Families grouped by one axis of their `Taxonomy`: value -> names. Raises WamkitError for an unknown axis."""
    load_package("wamkit.families")
    if axis not in AXES:
        raise WamkitError(f"families have no axis '{axis}'{nearest(axis, AXES)}; they have {', '.join(AXES)}")
    groups: dict[str, list[str]] = {}
    for name in FAMILIES.names():
        groups.setdefault(getattr(FAMILIES.get(name).taxonomy, axis), []).append(name)
    return dict(sorted(groups.items()))


def taxonomy_page() -> str:
    """docs/taxonomy.md: every family of this library with its place, made from what the families say of themselves."""
    load_package("wamkit.families")
    families = {n: FAMILIES.get(n) for n in FAMILIES.names() if FAMILIES.get(n).__module__.startswith("wamkit.")}
    lines = [
        "# The taxonomy",
        "",
        "Every family declares its place in the survey arXiv:2605.12090 as data; this page is made from it (`wamkit list --by leaf`).",
        "`wamkit show FAMILY` draws who sees whom.",
        "",
        "| family | leaf | the future is | how they meet | actions come out by | gradients | answers |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, cls in sorted(families.items(), key=lambda item: item[1].taxonomy.leaf):
        t = cls.taxonomy
        answers = ", ".join(sorted(cls.queries))
        lines.append(
            f"| `{name}` | {t.leaf} | {t.modality} | {t.conditioning} | {t.decoder} | {t.gradient} | {answers} |"
        )
    return "\n".join(lines) + "\n"


def label(segment: Segment) -> str:
    """What a segment is, in a few words."""
    state = "clean " if segment.clean else "noisy " if segment.stream in ("future", "action") else ""
    when = f", {-segment.moment} steps ago" if segment.moment else ""
    return f"{state}{segment.stream}{when}" + (f", draw {segment.problem}" if segment.problem else "")


def text(model: Family) -> str:
    """The page for a terminal. A filled square: the row's tokens look at the column's."""
    t, segments, seen = model.taxonomy, *model.attention_layout()
    parts: dict[str, int] = {}
    for name, p in model.named_parameters():
        head = name.split(".")[0]
        parts[head] = parts.get(head, 0) + p.numel()
    lines = [
        f"{model.name}: {t.leaf}",
        f"  the future is         {t.modality}",
        f"  how they meet         {t.conditioning}",
        f"  actions come out by   {t.decoder}",
        f"  gradients             {t.gradient}",
        f"  answers               {', '.join(sorted(model.queries))}",
        f"  stages                {', '.join(f'{s.name} {s.share:.0%}' for s in model.stages())}",
        f"  parameters            {sum(parts.values()):,}: {', '.join(f'{k} {n:,}' for k, n in parts.items())}",
        "",
        "  who sees whom: a row's tokens look at a column's",
    ]
    wide = max(len(label(s)) for s in segments)
    for i, (segment, row) in enumerate(zip(segments, seen.tolist(), strict=True), 1):
        squares = " ".join("■" if x else "·" for x in row)
        lines.append(f"  {i} {label(segment):<{wide}} {segment.length:>4} tokens   {squares}")
    return "\n".join(lines)


def svg(model: Family) -> str:
    """The same table as a picture: clean and known in blue, noisy in orange, queries and the like in grey."""
    segments, seen = model.attention_layout()
    cell, left, top = 34, 230, 60
    size = cell * len(segments)
    colour = lambda s: "#2a78d6" if s.clean or s.stream in ("context", "now", "text") else "#e08a2b"  # noqa: E731
    tint = lambda s: colour(s) if s.stream in ("context", "now", "text", "future", "action") else "#8a8a86"  # noqa: E731
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + size + 20} {top + size + 30}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#333">',
        f'<rect width="100%" height="100%" fill="#fff"/><text x="12" y="24" font-size="15">{escape(model.name)}: who sees whom</text>',
    ]
    for i, row in enumerate(segments):
        y = top + i * cell
        out.append(f'<text x="12" y="{y + 22}">{i + 1}  {escape(label(row))} ({row.length})</text>')
        out.append(f'<text x="{left + i * cell + 12}" y="{top - 8}">{i + 1}</text>')
        for k, column in enumerate(segments):
            fill = tint(column) if seen[i, k] else "#eee"
            x = left + k * cell
            out.append(f'<rect x="{x + 1}" y="{y + 1}" width="{cell - 2}" height="{cell - 2}" rx="3" fill="{fill}"/>')
    out.append(f'<text x="12" y="{top + size + 20}" fill="#777">rows look at columns; tokens in brackets</text></svg>')
    return "\n".join(out) + "\n"


def write_svg(model: Family, path: Path) -> None:
    """Writes the picture."""
    atomic_write(path, svg(model).encode())


def listing() -> str:
    """Families, queries, environments, importers, recipes, comparisons and protocols, a line each."""
    load_package("wamkit.families")
    load_package("wamkit.data.importers")
    notes = {
        "policy": "what should I do?  o, l -> a",
        "video": "what will happen?  o, l -> o'",
        "forward": "what if I do this?  o, l, a -> o'",
        "inverse": "what was done?  o, o' -> a",
        "joint": "what will happen and what should I do?  o, l -> o', a",
    }
    sections = {
        "families": {
            n: f"{FAMILIES.get(n).taxonomy.leaf}; answers {', '.join(sorted(FAMILIES.get(n).queries))}"
            for n in FAMILIES.names()
        },
        "queries": notes,
        "environments": {
            n: f"{_first_line(ENVIRONMENTS.get(n))} ({_tasks(ENVIRONMENTS.get(n))})" for n in ENVIRONMENTS.names()
        },
        "importers": {n: _first_line(IMPORTERS.get(n)) for n in IMPORTERS.names()},
        "recipes": {n: _first_line(RECIPES.get(n)) for n in RECIPES.names()},
        "comparisons": {n: _first_line(COMPARISONS.get(n)) for n in COMPARISONS.names()},
        "protocols": {n: _first_line(PROTOCOLS.get(n)) for n in PROTOCOLS.names()},
    }
    wide = max(len(name) for entries in sections.values() for name in entries)
    lines = []
    for title, entries in sections.items():
        lines += [title, *(f"  {name:<{wide}}  {note}" for name, note in entries.items())]
    return "\n".join(lines)


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _tasks(environment: Any) -> str:
    """How many tasks an environment has, or that the package which knows is missing."""
    try:
        return f"{len(environment.tasks())} tasks"
    except WamkitError:
        return "its package is not installed"
