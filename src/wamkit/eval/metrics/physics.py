"""Violations of physics, from states: what a probe read from imagined frames, held against what the simulator knows.

Every function takes one episode: T frames `dt` seconds apart, N objects, world metres with z up, NaN where an object
was not seen. Frames with NaN are left out and `Figure.count` tells how many cases remain; with none the value is NaN.
So an object that is lost breaks no law but `permanence`. Missing frames or objects, and shapes that disagree, are an
EvaluationError. All are errors: 0 is best, unless it says otherwise.

States read by a probe are noisy, and second differences amplify that noise by sqrt(6) / dt^2. So a figure means nothing
alone: `Violations` keeps it beside its floor, the same figure of the same probe on the real frames of the same
contexts. Where the floor is above what a frozen image gets, take frames farther apart: at a centimetre of noise
gravity, energy and momentum need a dt of about 0.1 s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer

from wamkit.errors import nearest
from wamkit.eval.metrics.intervals import bootstrap_ratio
from wamkit.eval.metrics.motion import Figure
from wamkit.types import UNDEFINED, EvaluationError, Interval

GRAVITY = 9.81
"""m/s^2, downwards."""


class Permanence(NamedTuple):
    """lost, invented: see `permanence`.   lost_again: `lost` of the frames after the object had once been hidden."""

    lost: Figure
    invented: Figure
    lost_again: Figure


def permanence(visible: Bool[np.ndarray, "T N"], present: Bool[np.ndarray, "T N"]) -> Permanence:
    """Object permanence: shares of (frame, object) that really are visible and are absent in the prediction, and the
    reverse.

    present: whether the probe sees the object, at a probability of .5. Both in [0, 1].
    Blind to where the object is, and to one object taking another's place.
    """
    visible, present = _table(visible, present, dtype=bool)
    hidden = np.cumsum(~visible & (np.cumsum(visible, 0) > 0), 0) > 0  # since it was last seen for the first time
    return Permanence(
        Figure.mean(~present[visible]), Figure.mean(present[~visible]), Figure.mean(~present[visible & hidden])
    )


def size_drift(truth_area: Float[np.ndarray, "T N"], area: Float[np.ndarray, "T N"]) -> Figure:
    """Mean of |log(a_t / a_0) - log(g_t / g_0)|: how much an object's area in the image changes beyond what it really
    does.

    In nats (0.69 is a factor of 2); g is the true area, a the prediction's, in any unit, and 0 the first frame in which
    both are positive. Frames in which either is 0 or NaN are left out: losing an object is `permanence`'s matter. Blind
    to a change of shape, and to an area that is wrong from the beginning.
    """
    truth_area, area = _table(truth_area, area)
    drift = []
    for g, a in zip(truth_area.T, area.T, strict=True):
        both = (g > 0) & (a > 0)
        if both.any():
            log = np.log(a[both] / g[both])
            drift.append(np.abs(log - log[0])[1:])
    return Figure.mean(np.concatenate(drift) if drift else np.empty(0))


class Penetration(NamedTuple):
    """rate: share of (frame, object) that are too deep.   depth: their mean depth beyond the tolerance, metres, zeros
    included.
    """

    rate: Figure
    depth: Figure


def penetration(distance: Float[np.ndarray, "T N"], tolerance: float = 0.002) -> Penetration:
    """Depth max(0, -distance - tolerance) of objects within others: p_t of `Physics.distances` of the predicted states.

    tolerance: metres; contacts of a simulator are soft, so take `depth_tolerance` of real states.
    Blind to objects that go through each other between two frames.
    """
    (distance,) = _table(distance)
    depth = np.maximum(0, -distance[np.isfinite(distance)] - tolerance)
    return Penetration(Figure.mean(depth > 0), Figure.mean(depth))


def depth_tolerance(distance: Float[np.ndarray, "T N"], percent: float = 99.0) -> float:
    """The `percent`-th percentile of the depth of real states, metres: what is legitimate. Raises EvaluationError for
    none.
    """
    (distance,) = _table(distance)
    if not np.isfinite(distance).any():
        raise EvaluationError("a tolerance needs real distances; all are NaN")
    return float(np.percentile(np.maximum(0, -distance[np.isfinite(distance)]), percent))


def gravity_error(position: Float[np.ndarray, "T N 3"], dt: float, unsupported: Bool[np.ndarray, "T N"]) -> Figure:
    """Mean of |x_{t+1} - 2 x_t + x_{t-1} - g dt^2| / |g dt^2| over objects in flight in all three frames. A still one
    has 1.

    unsupported: that nothing touches the object, in truth (of `GroundTruth.contact`); touched frames are left out, so T
    >= 3. [0, inf), no unit. A position noise of s metres alone gives about sqrt(18) s / (9.81 dt^2): at 50 Hz, 1 for a
    millimetre.
    """
    (position, unsupported) = _moving(position, 3, unsupported)
    free = unsupported[:-2] & unsupported[1:-1] & unsupported[2:]
    error = np.diff(position, 2, axis=0) / dt**2 + [0, 0, GRAVITY]
    return _mean(np.linalg.norm(error, axis=-1)[free] / GRAVITY)


def levitation(
    position: Float[np.ndarray, "T N 3"],
    dt: float,
    clearance: Float[np.ndarray, "T N"],
    epsilon: float = 0.01,
    slow: float = 0.05,
    frames: int = 3,
) -> Figure:
    """Share of (frame, object) that hover: farther than `epsilon` metres from anything, slower than `slow` m/s,
    `frames` in a row.

    clearance: metres to the nearest other object *in the predicted state* (`Physics.distances`). [0, 1]. The highest
    point of a throw is that slow for 10 ms. Blind to an object that sinks slowly but faster than `slow`, and noise
    hides it: what trembles is not slow.
    """
    (position, clearance) = _moving(position, 2, clearance)
    step = np.linalg.norm(np.diff(position, axis=0), axis=-1) / dt
    speed = np.concatenate([step[:1], step])
    known = np.isfinite(speed) & np.isfinite(clearance)
    floating, hovering = known & (clearance > epsilon) & (speed < slow), np.zeros_like(known)
    for start in range(len(floating) - frames + 1):
        hovering[start : start + frames] |= floating[start : start + frames].all(0)
    return Figure.mean(hovering[known])


def mechanical_energy(
    mass: Float[np.ndarray, " N"],
    position: Float[np.ndarray, "T N 3"],
    velocity: Float[np.ndarray, "T N 3"],
    inertia: Float[np.ndarray, "N 3"] | None = None,
    spin: Float[np.ndarray, "T N 3"] | None = None,
) -> Float[np.ndarray, "T N"]:
    """m |v|^2 / 2 + w I w / 2 + m g z in joules, of each object.

    inertia: kg m^2 about the object's own axes, with `spin` in the same axes, rad/s; without them turning counts for
    nothing.
    """
    energy = mass * (np.square(velocity).sum(-1) / 2 + GRAVITY * position[..., 2])
    if inertia is not None and spin is not None:
        energy = energy + (inertia * np.square(spin)).sum(-1) / 2
    return energy


def energy_gain(
    energy: Float[np.ndarray, "T N"], tolerance: float = 0.0, work: Float[np.ndarray, " S"] | None = None
) -> Figure:
    """Sum over steps of max(0, E_{t+1} - E_t - W - tau), E of all objects together: passive objects can only lose
    energy.

    Joules, of `count` steps; at least 0. tolerance: tau, joules.   work: W of T - 1 steps, what an actuator did to
    objects, joules; inf where one touches an object and its work is unknown (the step is then never charged). Objects
    that are NaN throughout are left out, steps in which another one is NaN are skipped. Blind to energy that is lost
    too fast, and noise always looks like gain.
    """
    (energy,) = _table(energy)
    if len(energy) < 2:
        raise EvaluationError(f"an energy gain needs two frames, found {len(energy)}")
    gain = np.diff(energy[:, np.isfinite(energy).any(0)].sum(1)) - tolerance
    if work is not None:
        if np.shape(work) != gain.shape:
            raise EvaluationError(f"work is of the {len(gain)} steps between frames, found {np.shape(work)}")
        gain = gain - work
    known = gain[~np.isnan(gain)] if np.isfinite(energy).any() else gain[:0]
    return Figure(float(np.maximum(0, known).sum()) if len(known) else math.nan, len(known))


def momentum_error(
    truth_position: Float[np.ndarray, "T N 3"],
    position: Float[np.ndarray, "T N 3"],
    dt: float,
    mass: Float[np.ndarray, " N"],
    colliding: Bool[np.ndarray, " T"],
) -> Figure:
    """Change of the total horizontal momentum over the first collision, beyond that of the truth (which friction
    makes).

    |dP - dP'| / |P'(before)|, dP = P(after) - P(before), ' of the truth, P = sum m v in the plane, v by differences
    over the step before the first colliding frame and the one after the last of it. [0, inf), no unit. Over the true
    momentum, because what a bad prediction has may be next to nothing.
    colliding: frames in whose step two objects touch in truth and nothing else pushes. count is 1, or 0 (NaN): no
    collision, cut off by an end of the episode, no momentum before, or NaN. Nearly blind to a collision that is passed
    without any effect, and to an image that stands still: both keep momentum.
    """
    truth_position, position, colliding = _moving(truth_position, 3, position, np.asarray(colliding, bool))
    touching = np.flatnonzero(colliding)
    if not len(touching):
        return Figure(math.nan, 0)
    before = touching[0] - 1
    after = touching[0] + int(np.argmin(np.append(colliding[touching[0] :], False)))
    if before < 1 or after >= len(position):
        return Figure(math.nan, 0)
    there = np.isfinite(truth_position).all((0, 2))

    def momentum(x: np.ndarray, t: int) -> np.ndarray:
        return np.asarray(mass, np.float64)[there] @ (x[t] - x[t - 1])[there, :2] / dt

    read, real = (momentum(x, after) - momentum(x, before) for x in (position, truth_position))
    size = np.linalg.norm(momentum(truth_position, before))
    value = float(np.linalg.norm(read - real) / size) if size > 0 else math.nan
    return Figure(value, int(not math.isnan(value)))


class Causality(NamedTuple):
    """See `contact_causality`."""

    premature: Figure
    missed: Figure
    lag: Figure
    f1: float


def contact_causality(
    truth_position: Float[np.ndarray, "T N 3"],
    position: Float[np.ndarray, "T N 3"],
    truth_contact: Bool[np.ndarray, "T N"],
    contact: Bool[np.ndarray, "T N"],
    epsilon: float = 0.02,
    window: int = 3,
) -> Causality:
    """Causes of motion: do objects move because they are touched? contact: with the robot, true and predicted.

    An object moves from the frame on in which it is `epsilon` metres from where it first was.
    premature: share of the objects that really do not move untouched, which in the prediction move before any contact.
    missed: share of the objects that really are touched and then move, which in the prediction do not move.
    lag: mean |frames| between true and predicted beginning of motion, of objects that move in both.
    f1: of beginnings of contact (after `window` frames without), matched one to one within `window` frames; [0, 1], *1
    is best*, NaN where there are none in either; blind to whether the object then moves. Blind to forces that act
    without moving anything. Noise below `epsilon` is not motion. premature says nothing of what does not move in the
    prediction, and missed nothing of how things move.
    """
    truth_position, position, truth_contact, contact = _moving(truth_position, 1, position, truth_contact, contact)
    never = len(position)
    onset = {"truth": _first(_away(truth_position) > epsilon), "read": _first(_away(position) > epsilon)}
    touched = {"truth": _first(truth_contact), "read": _first(contact)}
    seen = np.isfinite(truth_position).any((0, 2)) & np.isfinite(position).any((0, 2))
    passive = seen & (onset["truth"] >= touched["truth"])
    moved = passive & (onset["truth"] < never)
    both = seen & (onset["truth"] < never) & (onset["read"] < never)
    return Causality(
        premature=Figure.mean((onset["read"] < touched["read"])[passive]),
        missed=Figure.mean((onset["read"] == never)[moved]),
        lag=Figure.mean(np.abs(onset["read"] - onset["truth"])[both]),
        f1=_event_f1(_beginnings(truth_contact, window), _beginnings(contact, window), window),
    )


def teleports(
    truth_position: Float[np.ndarray, "T N 3"],
    position: Float[np.ndarray, "T N 3"],
    dt: float,
    factor: float = 1.5,
    slack: float = 0.05,
) -> Figure:
    """Share of steps in which an object is faster than `factor` times its true maximum plus `slack` (m/s). [0, 1].

    slack: for objects that do not move, and for the probe's noise. Blind to jumps over a frame in which nothing was
    seen. Blind to what is slower than it should be, to direction and to place.
    """
    truth_position, position = _moving(truth_position, 2, position)
    real, read = (np.linalg.norm(np.diff(x, axis=0), axis=-1) / dt for x in (truth_position, position))
    limit = factor * np.max(np.where(np.isfinite(real), real, 0), axis=0) + slack
    known = np.isfinite(read) & np.isfinite(real).any(0)
    return Figure.mean((read > limit)[known])


@dataclass(frozen=True)
class Violations:
    """Figures of B contexts beside their floors: by name, float64 (B,), NaN where undefined.

    metric: of imagined frames.   floor: of the real frames of the same contexts, read by the same probe through the
    same codec.
    """

    metric: Mapping[str, Float[np.ndarray, " B"]]
    floor: Mapping[str, Float[np.ndarray, " B"]]

    def __post_init__(self) -> None:
        if self.metric.keys() != self.floor.keys() or not self.metric:
            raise EvaluationError(f"metric and floor need the same names: {sorted(self.metric)}, {sorted(self.floor)}")
        lengths = {len(x) for side in (self.metric, self.floor) for x in side.values()}
        if len(lengths) != 1 or 0 in lengths:
            raise EvaluationError(
                f"metric and floor are paired by context, at least one; found lengths {sorted(lengths)}"
            )

    @staticmethod
    def of(imagined: Sequence[Mapping[str, float]], real: Sequence[Mapping[str, float]]) -> Violations:
        """Violations from one dictionary of figures for each context, in the same order on both sides."""
        if len(imagined) != len(real) or not imagined:
            raise EvaluationError(f"{len(imagined)} imagined and {len(real)} real contexts are not pairs")
        if any(row.keys() != imagined[0].keys() for row in (*imagined, *real)):
            raise EvaluationError("every context needs the same figures")
        return Violations(
            *({k: np.array([r[k] for r in side], np.float64) for k in imagined[0]} for side in (imagined, real))
        )

    def excess(self, name: str) -> Float[np.ndarray, " B"]:
        """metric - floor of each context; NaN where either is undefined."""
        if name not in self.metric:
            raise EvaluationError(
                f"there is no figure {name!r}{nearest(name, self.metric)}; there are {sorted(self.metric)}"
            )
        return self.metric[name] - self.floor[name]

    def interval(
        self,
        name: str,
        episode: Integer[np.ndarray, " B"],
        seed: int,
        bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> Interval:
        """Mean excess over the contexts where it is defined, clustered by episode; UNDEFINED where there is none.

        bounds: the range of the excess, (-1, 1) of a share.
        """
        excess = self.excess(name)
        known = np.isfinite(excess)
        if not known.any():
            return UNDEFINED
        cluster = np.asarray(episode)[known]
        return bootstrap_ratio(excess[known], np.ones(known.sum()), cluster, seed, bounds=bounds)


def _table(*arrays: np.ndarray, dtype: type = np.float64) -> list[np.ndarray]:
    """Checked (T, N) arrays of one shape."""
    out = [np.asarray(a, dtype) for a in arrays]
    if out[0].ndim != 2 or 0 in out[0].shape or any(a.shape != out[0].shape for a in out):
        raise EvaluationError(f"need arrays (T, N) of one shape, with a frame and an object: {[a.shape for a in out]}")
    return out


def _moving(position: np.ndarray, frames: int, *others: np.ndarray) -> list[np.ndarray]:
    """Checked positions (T, N, 3) of at least `frames` frames, and what else has T."""
    position = np.asarray(position, np.float64)
    if position.ndim != 3 or position.shape[2] != 3 or not position.shape[1]:
        raise EvaluationError(f"positions are (T, N, 3) of at least one object; found {position.shape}")
    if len(position) < frames:
        raise EvaluationError(f"this needs {frames} frames, found {len(position)}")
    others = tuple(np.asarray(other) for other in others)
    for other in others:
        if other.shape != position.shape[: other.ndim]:
            raise EvaluationError(f"{other.shape} does not belong to positions of {position.shape}")
    return [position, *others]


def _mean(values: np.ndarray) -> Figure:
    return Figure.mean(values[np.isfinite(values)])


def _away(position: np.ndarray) -> np.ndarray:
    """Metres from where each object was first seen, (T, N); NaN where not seen."""
    start = np.array([_first_seen(x) for x in position.transpose(1, 0, 2)])
    return np.linalg.norm(position - start, axis=-1)


def _first_seen(x: np.ndarray) -> np.ndarray:
    seen = np.isfinite(x).all(-1)
    return x[np.argmax(seen)] if seen.any() else np.full(3, np.nan)


def _first(flags: np.ndarray) -> np.ndarray:
    """The first frame that is true, int (N,); T where none is."""
    return np.where(flags.any(0), np.argmax(flags, 0), len(flags))


def _beginnings(flags: np.ndarray, window: int) -> list[np.ndarray]:
    """True frames after `window` false ones, an array an object: contact flickers while an object is pushed."""
    before = np.zeros_like(flags)
    for k in range(1, window + 1):
        before[k:] |= flags[:-k]
    return [np.flatnonzero(column) for column in (flags & ~before).T]


def _event_f1(truth: Sequence[np.ndarray], read: Sequence[np.ndarray], window: int) -> float:
    """2 TP / (2 TP + FP + FN), events matched in order of time, each at most once."""
    hits, total = 0, sum(map(len, truth)) + sum(map(len, read))
    for real, found in zip(truth, read, strict=True):
        free = list(found)
        for event in real:
            near = [f for f in free if abs(f - event) <= window]
            if near:
                hits += 1
                free.remove(near[0])
    return 2 * hits / total if total else math.nan
