"""wamkit: define, train, query, compare and evaluate World Action Models, from two CPU cores up."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from wamkit.inference.model import Model, load
    from wamkit.inference.policy import Policy, Session
    from wamkit.types import Batch, Embedding, Observation, Query, Sample, Spec, UnsupportedQuery, WamkitError

__version__ = "0.1.0"

# Imported at first use: the command line answers Ctrl-C, and a wrong command, before torch is loaded.
_HOMES = {
    "wamkit.inference.model": ("Model", "load"),
    "wamkit.inference.policy": ("Policy", "Session"),
    "wamkit.types": ("Batch", "Embedding", "Observation", "Query", "Sample", "Spec", "UnsupportedQuery", "WamkitError"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [
    "Batch",
    "Embedding",
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


class _AfterGymnasium:
    """Finder that has wamkit's Gymnasium ids registered at the end of the import of gymnasium, whoever imports it.

    So `import wamkit` need not import gymnasium for ids that few programs make.
    """

    _looking = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "gymnasium" or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _register_ids()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _register_ids() -> None:
    importlib.import_module("wamkit.envs.gymnasium_ids").register_own_ids()


if "gymnasium" in sys.modules:
    _register_ids()
else:
    sys.meta_path.insert(0, _AfterGymnasium())
