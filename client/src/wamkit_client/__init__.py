"""Client of a World Action Model that is served: `connect` to `wamkit serve`, or to a server of openpi."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wamkit_client.client import Client, ServerError, connect
    from wamkit_client.protocol import ProtocolError

_MODULES = {"Client": "client", "ServerError": "client", "connect": "client", "ProtocolError": "protocol"}
__all__ = ["Client", "ProtocolError", "ServerError", "connect"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'wamkit_client' has no attribute {name!r}")
    return getattr(importlib.import_module(f"wamkit_client.{_MODULES[name]}"), name)
