"""`wamkit list`: the names that other commands take."""

from __future__ import annotations

import importlib
from dataclasses import KW_ONLY, dataclass
from typing import Any

from wamkit.cli.parse import COMMANDS, Options, first_line
from wamkit.errors import WamkitError, missing_package, nearest

AXES = {
    "leaf": "leaf of the survey's taxonomy",
    "modality": "content of the future",
    "conditioning": "link between imagination and action",
    "decoder": "origin of the actions",
    "gradient": "path of the gradients",
}
"""Axes of `Taxonomy`."""

SHOWN = 12
"""Most tasks of an environment that stand in the line about it."""

NAMED_BY_OPTIONS = "Its options name the task."
"""Said of an environment that has no tasks of its own."""

DOCUMENTED = {
    "importers": ("wamkit.data.importers", "IMPORTERS"),
    "recipes": ("wamkit.runs.recipes", "RECIPES"),
    "comparisons": ("wamkit.experiments.comparisons", "COMPARISONS"),
    "protocols": ("wamkit.eval.protocols", "PROTOCOLS"),
    "trackers": ("wamkit.training.trackers.base", "TRACKERS"),
    "executors": ("wamkit.executors.base", "EXECUTORS"),
}
"""Kind -> module and name of its registry."""

QUERIES = {
    "policy": "what should I do?  o, l -> a",
    "video": "what will happen?  o, l -> o'",
    "forward": "what if I do this?  o, l, a -> o'",
    "inverse": "what was done?  o, o' -> a",
    "joint": "what will happen and what should I do?  o, l -> o', a",
}


@dataclass(frozen=True)
class List(Options):
    """List families, queries, environments, tasks, importers, recipes, comparisons, protocols, trackers, executors."""

    _: KW_ONLY
    by: str = ""
    """Axis of the taxonomy to group the families by: leaf, modality, conditioning, decoder or gradient."""
    tasks: str = ""
    """Environment whose tasks to name, one a line."""
    table: bool = False
    """Print the families and their places in the taxonomy as a Markdown table: the page docs/taxonomy.md."""


@COMMANDS.register("list")
def run(args: List) -> None:
    """Prints a line for each name."""
    if args.table:
        print(taxonomy_page(), end="")
    elif args.tasks:
        from wamkit.envs import ENVIRONMENTS

        print("\n".join(ENVIRONMENTS.get(args.tasks).tasks() or [NAMED_BY_OPTIONS]))
    elif args.by:
        for value, names in families_by(args.by).items():
            print(f"{value}\n  {', '.join(names)}")
    else:
        sections = all_names()
        wide = max(len(name) for entries in sections.values() for name in entries)
        for title, entries in sections.items():
            print("\n".join([title, *(f"  {name:<{wide}}  {note}" for name, note in entries.items())]))


def all_names() -> dict[str, dict[str, str]]:
    """Kind of thing -> name -> one line about it."""
    from wamkit.envs import ENVIRONMENTS

    environments = {name: ENVIRONMENTS.get(name) for name in ENVIRONMENTS.names()}
    return {
        "families": {
            name: f"{family.taxonomy.leaf}; supports {', '.join(sorted(family.queries))}"
            for name, family in _families().items()
        },
        "queries": QUERIES,
        "environments": {name: f"{first_line(env)} {_tasks(name, env)}" for name, env in environments.items()},
        **{kind: _documented(*home) for kind, home in DOCUMENTED.items()},
    }


def families_by(axis: str) -> dict[str, list[str]]:
    """Families grouped by one axis of their `Taxonomy`: value -> names. Raises WamkitError for an unknown axis."""
    if axis not in AXES:
        raise WamkitError(f"families have no axis '{axis}'{nearest(axis, AXES)}; they have {', '.join(AXES)}")
    groups: dict[str, list[str]] = {}
    for name, family in _families().items():
        groups.setdefault(getattr(family.taxonomy, axis), []).append(name)
    return dict(sorted(groups.items()))


def taxonomy_page() -> str:
    """The page docs/taxonomy.md: every family of this library, without plug-ins, with its place in the taxonomy."""
    own = {name: family for name, family in _families().items() if family.__module__.startswith("wamkit.")}
    lines = [
        "# The taxonomy",
        "",
        "Every family declares its place in the taxonomy of the survey arXiv:2605.12090 as data. This page is made",
        "from it (`make docs/taxonomy.md`). `wamkit list --by leaf` groups the families by one axis;",
        "`wamkit show FAMILY` draws the attention between the parts of its token sequence.",
        "",
        "| family | leaf | future | conditioning | action decoder | gradients | queries |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, family in sorted(own.items(), key=lambda item: item[1].taxonomy.leaf):
        place = [getattr(family.taxonomy, axis) for axis in AXES]
        lines.append("| " + " | ".join([f"`{name}`", *place, ", ".join(sorted(family.queries))]) + " |")
    return "\n".join(lines) + "\n"


def _documented(module: str, registry: str) -> dict[str, str]:
    """Name -> first line of its description; only a note where an optional package is needed to know them."""
    try:
        things = getattr(importlib.import_module(module), registry)
        return {name: first_line(things.get(name)) for name in things.names()}
    except ModuleNotFoundError as error:
        if not (line := missing_package(error)):
            raise
        return {"": line}


def _families() -> dict[str, Any]:
    from wamkit.families.base import FAMILIES

    return {name: FAMILIES.get(name) for name in FAMILIES.names()}


def _tasks(name: str, environment: Any) -> str:
    """The tasks of an environment, those of many by their number, or a note that the package that knows is missing."""
    try:
        tasks = environment.tasks()
    except WamkitError:
        return "Its package is not installed."
    if not tasks:
        return NAMED_BY_OPTIONS
    if len(tasks) <= SHOWN:
        return f"{'Task' if len(tasks) == 1 else 'Tasks'}: {', '.join(tasks)}."
    return f"{len(tasks)} tasks, from {tasks[0]} to {tasks[-1]}: `wamkit list --tasks {name}` names them."
