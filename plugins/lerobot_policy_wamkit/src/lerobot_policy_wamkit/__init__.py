"""A run of wamkit as a policy of LeRobot. Importing it registers the policy and the environments, both "wamkit"."""

from __future__ import annotations

import sys
from types import TracebackType

from lerobot_policy_wamkit.configuration_wamkit import WamkitConfig
from lerobot_policy_wamkit.environments import WamkitEnvConfig
from wamkit.errors import WamkitError, missing_package

__all__ = ["WamkitConfig", "WamkitEnvConfig"]

_print_traceback = sys.excepthook


def _print_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints an error that wamkit raised on purpose as one line, as its own commands do, and others as before.

    A missing package that an extra of wamkit brings is one too.
    """
    line = str(error) if isinstance(error, WamkitError) else ""
    if isinstance(error, ModuleNotFoundError):
        line = missing_package(error)
    if line:
        print(f"wamkit: {line}", file=sys.stderr)
    else:
        _print_traceback(kind, error, trace)


sys.excepthook = _print_error
