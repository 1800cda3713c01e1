"""All figures of `physical` for one episode of the physics suite: states read from frames against the simulator's
truth.
"""

from __future__ import annotations

import numpy as np

from wamkit.envs.base import Environment
from wamkit.envs.ground_truth import GroundTruth
from wamkit.eval.metrics import physics as physical
from wamkit.eval.metrics.motion import ade
from wamkit.eval.probes.object_state import States
from wamkit.types import EvaluationError

VISIBLE = 4 / 64**2
"""Share of the image from which on an object counts as visible: 4 pixels of 64x64."""

ERRORS = (
    "lost",
    "invented",
    "lost_again",
    "size_drift",
    "penetration_rate",
    "penetration_depth",
    "gravity",
    "levitation",
    "energy_gain",
    "momentum",
    "premature",
    "missed",
    "lag",
    "contact_f1_error",
    "teleports",
    "ade",
)
"""Names of the figures of `errors`. Units and ranges are those of `eval.metrics.physics`; ade is in metres."""


def true_states(truth: GroundTruth) -> States:
    """Reading of a perfect probe on the true frames: objects of which at least `VISIBLE` shows. Needs masks."""
    present = truth.area >= VISIBLE
    position = np.where(present[..., None], truth.position, np.nan)
    return States(position, present, np.where(present, truth.area, 0.0))


def errors(
    env: Environment, truth: GroundTruth, states: States, dt: float, touch: float = 0.005, tolerance: float = 0.002
) -> dict[str, float]:
    """Every figure of one episode, by the names in `ERRORS`; 0 is best, NaN where this scene has no case of it.

    ade: of what is seen in both, so that an object that is lost costs nothing here, but in `lost`.

    env: holds the scene (any instant of it), in which the states are put, turned as they truly are.   truth: with
    masks, of the same T frames (`GroundTruth.at` where these are not all).   states: what was read from T frames; with
    `true_states` nearly all is 0.
    dt: seconds between frames.   touch: metres at which a read object touches the pusher.   tolerance: of
    `penetration`. Contacts with the pusher are only in `push`; its own motion is taken from the truth. Raises
    EvaluationError for lengths that disagree.
    """
    if len(states.present) != len(truth.position):
        raise EvaluationError(f"{len(states.present)} frames were read, of {len(truth.position)} that are known")
    N, position, visible = truth.exists.sum(), states.position[:, truth.exists], (truth.area >= VISIBLE)
    here = slice(0, N)
    turned, pushed = truth.quaternion, truth.contact[:, here, -1]
    distance = env.distances(states.position, turned, truth.pusher)[:, here]
    permanence = physical.permanence(visible, states.present)
    deep = physical.penetration(distance, tolerance)
    known = truth.position[:, here]
    found = {
        "lost": permanence.lost,
        "invented": permanence.invented,
        "lost_again": permanence.lost_again,
        "size_drift": physical.size_drift(truth.area, states.area),
        "penetration_rate": deep.rate,
        "penetration_depth": deep.depth,
        "gravity": physical.gravity_error(position, dt, ~truth.contact[:, here].any(-1)),
        "levitation": physical.levitation(position, dt, distance),
        "energy_gain": _energy_gain(truth.mass[here], position, dt, pushed.any(1)),
        "momentum": physical.momentum_error(known, position, dt, truth.mass[here], truth.contact[:, 0, 1]),
        "teleports": physical.teleports(known, position, dt),
    }
    out = dict.fromkeys(ERRORS, np.nan) | {name: figure.value for name, figure in found.items()}
    if np.isfinite(truth.pusher).all():
        near = env.distances(states.position, turned, truth.pusher, to="pusher")[:, here] < touch
        causes = physical.contact_causality(known, position, pushed, near)
        out |= {"premature": causes.premature.value, "missed": causes.missed.value, "lag": causes.lag.value}
        out["contact_f1_error"] = 1 - causes.f1
    both = np.isfinite(position).all(-1)
    out["ade"] = ade(known[both], position[both]) if both.any() else np.nan
    return out


def _energy_gain(mass: np.ndarray, position: np.ndarray, dt: float, pushed: np.ndarray) -> physical.Figure:
    """Gain of the centres' energies half way between frames, where differences give the velocity exactly for constant
    acceleration.
    """
    if len(position) < 3:
        return physical.Figure(np.nan, 0)
    velocity, middle = np.diff(position, axis=0) / dt, (position[1:] + position[:-1]) / 2
    work = np.where(pushed[1:-1] | pushed[2:], np.inf, 0.0)
    return physical.energy_gain(physical.mechanical_energy(mass, middle, velocity), work=work)
