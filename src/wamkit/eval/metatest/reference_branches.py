"""Models whose rank is known beforehand: what a metric of counterfactuals must tell apart before it is believed of a real one."""

from __future__ import annotations

import numpy as np

from wamkit.eval.suites.action_fidelity import Imagine
from wamkit.eval.suites.counterfactuals import STILL, Counterfactuals


def oracle(state: Counterfactuals) -> np.ndarray:
    """The simulator itself."""
    return state.future


def noisy(sigma: float) -> Imagine:
    """The simulator through noise of `sigma` grey levels."""

    def imagine(state: Counterfactuals) -> np.ndarray:
        rng = np.random.default_rng((state.seed, state.step))
        return np.clip(state.future + rng.normal(0, sigma, state.future.shape), 0, 255).astype(np.uint8)

    return imagine


def copy(state: Counterfactuals) -> np.ndarray:
    """Nothing ever changes."""
    return np.broadcast_to(state.obs.images, state.future.shape).copy()


def blind(state: Counterfactuals) -> np.ndarray:
    """What usually happens, whatever is done: perfect on the branch that was taken, deaf to all others."""
    return np.repeat(state.future[:1], len(state.names), 0)


def still(state: Counterfactuals) -> np.ndarray:
    """What happens when nothing is done, whatever is done."""
    return np.repeat(state.future[state.names.index(STILL)][None], len(state.names), 0)


def opposite(state: Counterfactuals) -> np.ndarray:
    """Actions have the effect of their opposites, and of another branch where they have none."""
    other = np.roll(np.arange(len(state.names)), 1)
    for i, name in enumerate(state.names):
        against = {"-": "+", "+": "-"}.get(name[0], "") + name[1:]
        if name[0] in "-+" and against in state.names:
            other[i] = state.names.index(against)
    return state.future[other]


def shuffled(state: Counterfactuals) -> np.ndarray:
    """Futures that listen to actions, each to another's."""
    order = np.random.default_rng((state.seed, state.step)).permutation(len(state.names))
    return state.future[np.roll(order, 1)[np.argsort(order)]]


MODELS: dict[str, Imagine] = {
    "oracle": oracle,
    "noisy oracle": noisy(20.0),
    "copy": copy,
    "blind": blind,
    "still": still,
    "shuffled": shuffled,
    "opposite": opposite,
}
"""Best first, as far as they can be ordered."""
