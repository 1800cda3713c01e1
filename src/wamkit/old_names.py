"""Names in files of earlier versions, and their present names. No other module knows both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL = {"draws": "targets"}
"""Fields of a family's configuration."""
SPEC = {"points": "point_grid"}
"""Fields of `wamkit.Spec`."""
ENV_OPTIONS = {"points": "point_grid"}
"""Options of environments."""
COLLECT = {
    "near_misses": "perturbed_experts",
    "near_miss_offset": "perturbed_offset",
    "near_miss_steps": "perturbed_steps",
}
"""Fields of `collect.json`."""


def renamed(data: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, Any]:
    """`data` with the keys that `table` knows under their present names, in the order of `data`."""
    return {table.get(k, k): v for k, v in data.items()}


def collected(data: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `collect.json`, its environment's options included, under present names."""
    data = renamed(data, COLLECT)
    return data | {"options": renamed(data["options"], ENV_OPTIONS)} if "options" in data else data


def run_config(data: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run, as a checkpoint and config.json hold it, under present names."""
    data = renamed(data, {"robots": "embodiments"})
    for part, table in (("model", MODEL), ("spec", SPEC)):
        if part in data:
            data[part] = renamed(data[part], table)
    if (source := data.pop("source", None)) is not None:
        data["provenance"] = _provenance(source)
    return data


def source(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance in the flat form under which finished results are keyed: the inverse of what `run_config` does."""
    env = dict(provenance["env"])
    flat = {"env": env["env"], "options": options(env["options"]), "tasks": env["tasks"]}
    flat |= {"robot": env["embodiment"]} if env["embodiment"] else {}
    return flat | {k: v for k, v in provenance.items() if k != "env"}


def options(present: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an environment under the names by which finished results are keyed."""
    return renamed(present, {new: old for old, new in ENV_OPTIONS.items()})


def _provenance(source: Mapping[str, Any]) -> dict[str, Any]:
    env = {k: source[k] for k in ("env", "tasks") if k in source}
    env |= {"options": renamed(source.get("options", {}), ENV_OPTIONS), "embodiment": source.get("robot", "")}
    return {"env": env} | {k: v for k, v in source.items() if k not in ("env", "tasks", "options", "robot")}
