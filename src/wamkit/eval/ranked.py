"""The policies of a ranking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wamkit.errors import WamkitError

LEAST = 4
"""Smallest number of policies in a ranking; eight or more for a ranking with a meaning."""


def check_policies(policies: Sequence[Path], failure_policies: Sequence[Path] = ()) -> None:
    """Raises WamkitError for fewer than `LEAST` policies, one named twice, or one that also trains the classifier."""
    if len(set(policies)) < LEAST or len(set(policies)) != len(policies):
        raise WamkitError(f"a ranking needs {LEAST} policies or more, each named once; got {len(policies)}")
    if twice := sorted({str(p) for p in failure_policies} & {str(p) for p in policies}):
        raise WamkitError(f"{', '.join(twice)} cannot both train the classifier and be ranked by it")
