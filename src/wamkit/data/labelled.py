"""Data sets whose actions a run read off videos (`wamkit label`): their columns, and a line about them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wamkit.data.format.store import Store
from wamkit.metadata import Labels

SPREAD, WINDOWS = "action.spread", "action.windows"
"""Columns of such a data set: deviation over the windows that hold a step, in units of the action (a values), and their
number: 0 for a last step, which no later frame shows and which repeats the label before it."""


def spreads(store: Store) -> Mapping[str, float]:
    """The median deviation over the windows that hold a step, by the name of the dimension, in units of the action.

    Steps that fewer than two windows hold are left out; without any others, or without these columns, it is empty.
    """
    columns = store.numeric()
    if SPREAD not in columns or WINDOWS not in columns:
        return {}
    several = columns[WINDOWS].reshape(-1) > 1
    if not several.any():
        return {}
    median = np.median(columns[SPREAD].reshape(len(several), -1)[several], 0)
    return dict(zip(store.layout.action_names, map(float, median), strict=False))


def in_words(store: Store, labels: Labels) -> str:
    """A line about the labels of a data set: the run, what it read, and how far its windows agree."""
    read = "state and actions" if labels.state else "actions"
    found = ", ".join(f"{name} {value:.3g}" for name, value in list(spreads(store).items())[:8])
    more = f"; windows differ by {found}" if found else ""
    return f"{read} were read off the videos by {labels.run} ({labels.family}, {labels.digest[:16]}){more}"
