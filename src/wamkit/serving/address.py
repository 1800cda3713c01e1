"""Addresses that a server may listen on."""

from __future__ import annotations

from wamkit.types import WamkitError


def check_address(host: str, token: str) -> None:
    """Raises WamkitError for an address that other machines reach without a token."""
    if host not in ("127.0.0.1", "::1", "localhost") and not token:
        raise WamkitError(
            f"--host {host} can be reached from other machines: name a file that holds a token, --token-file"
        )
