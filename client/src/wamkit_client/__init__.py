"""Client of a World Action Model that is served: `connect` to `wamkit serve`, or to a server of openpi."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wamkit_client.chunks import Chunks
    from wamkit_client.client import Client, ServerError, connect
    from wamkit_client.protocol import ProtocolError
    from wamkit_client.runner import Runner
    from wamkit_client.safety import Guard, Limits, Unsafe

_MODULES = {
    "Chunks": "chunks",
    "Client": "client",
    "Guard": "safety",
    "Limits": "safety",
    "ProtocolError": "protocol",
    "Runner": "runner",
    "ServerError": "client",
    "Unsafe": "safety",
    "connect": "client",
}
__all__ = ["Chunks", "Client", "Guard", "Limits", "ProtocolError", "Runner", "ServerError", "Unsafe", "connect"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'wamkit_client' has no attribute {name!r}")
    return getattr(importlib.import_module(f"wamkit_client.{_MODULES[name]}"), name)
