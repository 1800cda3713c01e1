"""wamkit: define, train, query, compare and evaluate World Action Models, from two CPU cores up."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wamkit.inference.model import Model, load
    from wamkit.inference.policy import Policy, Session
    from wamkit.types import Batch, Observation, Query, Sample, Spec, UnsupportedQuery, WamkitError

__version__ = "0.1.0"

# Imported at first use: the command line answers Ctrl-C, and a wrong command, before torch is loaded.
_HOMES = {
    "wamkit.inference.model": ("Model", "load"),
    "wamkit.inference.policy": ("Policy", "Session"),
    "wamkit.types": ("Batch", "Observation", "Query", "Sample", "Spec", "UnsupportedQuery", "WamkitError"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [
    "Batch",
    "Model",
    "Observation",
    "Policy",
    "Query",
    "Sample",
    "Session",
    "Spec",
    "UnsupportedQuery",
    "WamkitError",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'wamkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
