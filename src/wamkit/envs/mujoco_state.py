"""The state of a MuJoCo simulation as one vector, written back byte for byte."""

from __future__ import annotations

from typing import Any

import numpy as np


def read_state(mujoco: Any, model: Any, data: Any) -> np.ndarray:
    """float64 (n,), MuJoCo's mjSTATE_INTEGRATION: all that the next step depends on."""
    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, spec))
    mujoco.mj_getState(model, data, state, spec)
    return state


def write_state(mujoco: Any, model: Any, data: Any, state: np.ndarray) -> None:
    """Sets `data` to a state of `read_state`, with everything computed that follows from it (positions of bodies,
    contacts)."""
    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(model, data, state, spec)
    mujoco.mj_forward(model, data)
    # mj_forward overwrites the solver's warm start, which is part of the state.
    mujoco.mj_setState(model, data, state, spec)
