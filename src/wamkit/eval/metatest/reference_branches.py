"""Models of known rank, which a metric of counterfactuals must order before its figures of real models count."""

from __future__ import annotations

import numpy as np

from wamkit.eval.suites.counterfactuals import Counterfactuals, Imagine
from wamkit.rollout.replay import STILL


def oracle(state: Counterfactuals) -> np.ndarray:
    """The simulator itself."""
    return state.future


def noisy(sigma: float) -> Imagine:
    """The simulator with noise of `sigma` grey levels."""

    def imagine(state: Counterfactuals) -> np.ndarray:
        rng = np.random.default_rng((state.seed, state.step))
        return np.clip(state.future + rng.normal(0, sigma, state.future.shape), 0, 255).astype(np.uint8)

    return imagine


def copy(state: Counterfactuals) -> np.ndarray:
    """The current image, repeated."""
    return np.broadcast_to(state.obs.images, state.future.shape).copy()


def action_blind(state: Counterfactuals) -> np.ndarray:
    """The usual future whatever the action: perfect on the branch that was taken, blind to all other actions."""
    return np.repeat(state.future[:1], len(state.names), 0)


def still(state: Counterfactuals) -> np.ndarray:
    """The future in which nothing is done, whatever the action."""
    return np.repeat(state.future[state.names.index(STILL)][None], len(state.names), 0)


def opposite(state: Counterfactuals) -> np.ndarray:
    """Futures of opposite actions, and of another branch where an action has no opposite."""
    other = np.roll(np.arange(len(state.names)), 1)
    for i, name in enumerate(state.names):
        against = {"-": "+", "+": "-"}.get(name[0], "") + name[1:]
        if name[0] in "-+" and against in state.names:
            other[i] = state.names.index(against)
    return state.future[other]


def shuffled(state: Counterfactuals) -> np.ndarray:
    """Futures that follow actions, but each those of another branch."""
    order = np.random.default_rng((state.seed, state.step)).permutation(len(state.names))
    return state.future[np.roll(order, 1)[np.argsort(order)]]


MODELS: dict[str, Imagine] = {
    "oracle": oracle,
    "noisy oracle": noisy(20.0),
    "copy": copy,
    "action-blind": action_blind,
    "still": still,
    "shuffled": shuffled,
    "opposite": opposite,
}
"""Reference models, best first as far as they can be ordered."""
