"""Names in files of earlier versions, and what they are called now: the only place that knows both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL = {"draws": "targets"}
"""Fields of a family's configuration."""
SPEC = {"points": "point_grid"}
"""Fields of `wamkit.Spec`."""
ENV_OPTIONS = {"points": "point_grid", "drawn": "render_size"}
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
