"""Physics: do the frames that a model imagines obey the laws of the simulator?

The model runs free: its own frames become its next input through real episodes. A probe and a segmenter, trained on
other real episodes and frozen, read positions, sizes, presence and pixels of every tracked body off each frame. Their
reading of the *real* frames of the same instants is the floor. A video in which nothing moves is read as well, since
standing still keeps many laws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from wamkit.envs import ENVIRONMENTS
from wamkit.envs.ground_truth import GroundTruth
from wamkit.envs.spec import EnvSpec
from wamkit.eval.metrics import physics as physical
from wamkit.eval.metrics.intervals import bootstrap_ratio
from wamkit.eval.metrics.motion import PhysicsIQ, ade, motion_mask, physics_iq, physics_iq_score
from wamkit.eval.metrics.physics import Violations
from wamkit.eval.probes.object_state import Probe, ProbeError, States, probe_error, read_states, train_probe
from wamkit.eval.probes.segmentation import Segmenter, read_masks, train_segmenter
from wamkit.eval.registry import EVALUATIONS, Context, Evaluation
from wamkit.eval.results import PHYSICAL, EvalResult, Row, Table, Worst
from wamkit.eval.suites.free_running import Continuation, ReferenceEpisode, free_run, reference_episodes
from wamkit.eval.suites.physics_scenes import VISIBLE, errors, true_states
from wamkit.inference.model import Model
from wamkit.types import UNDEFINED, EvaluationError, Interval
from wamkit.viz.images import difference

TRAIN_FRAMES = 1500
"""Largest number of real frames that train probe and segmenter."""

JITTER = 0.05
"""Share by which mass, friction, speed and place differ in the second take that a ceiling is made from, where an
environment has that.
"""

NAMES = {
    "lost": ("bodies that vanish", ".1%", "share of visible bodies"),
    "lost_again": ("bodies that vanish after being hidden", ".1%", "share of those that came back"),
    "invented": ("bodies from nowhere", ".1%", "share of absent bodies"),
    "size_drift": ("change of size", ".3f", "nats beyond the true change"),
    "ade": ("positions, mean error", ".3f", "m"),
    "teleports": ("jumps", ".1%", "share of steps faster than ever seen"),
    "premature": ("moves before it is touched", ".1%", "share of bodies at rest"),
    "missed": ("is touched and does not move", ".1%", "share of bodies that were moved"),
    "lag": ("when it begins to move, error", ".2f", "frames"),
    "penetration_rate": ("one inside another", ".1%", "share of frames"),
    "penetration_depth": ("how deep", ".4f", "m"),
    "gravity": ("fall, error of acceleration", ".2f", "g"),
    "levitation": ("hangs in the air", ".1%", "share of frames"),
    "energy_gain": ("energy from nothing", ".3f", "share of the episode's"),
    "momentum": ("momentum lost or won in collisions", ".2f", "share"),
    "contact_f1_error": ("contacts at the wrong time", ".2f", "1 - F1"),
}
"""Figures in a report's order: label, format, unit. Best is 0."""


@dataclass(frozen=True)
class Reader:
    """Probe and segmenter, which read frames.

    bodies: bool (N,), the rows of `GroundTruth` in their training, those that were ever visible.
    error: of the probe, on real frames that neither was trained on.
    """

    probe: Probe
    segmenter: Segmenter
    bodies: np.ndarray
    error: ProbeError

    def states(self, frames: UInt8[np.ndarray, "M 3 H W"]) -> States:
        """States that the probe reads, of all N bodies: those outside its training are absent."""
        read, shape = read_states(self.probe, frames), (len(frames), len(self.bodies))
        position = np.full((*shape, read.position.shape[-1]), np.nan)
        present, area = np.zeros(shape, bool), np.zeros(shape)
        position[:, self.bodies], present[:, self.bodies], area[:, self.bodies] = read.position, read.present, read.area
        return States(position, present, area)

    def masks(self, frames: UInt8[np.ndarray, "M 3 H W"]) -> Bool[np.ndarray, "M N H W"]:
        """Masks that the segmenter reads, of all N bodies: those outside its training are empty."""
        out = np.zeros((len(frames), len(self.bodies), *frames.shape[2:]), bool)
        out[:, self.bodies] = read_masks(self.segmenter, frames)
        return out


def reader(
    learn: Sequence[ReferenceEpisode],
    check: Sequence[ReferenceEpisode],
    *,
    seed: int = 0,
    steps: int | None = None,
    mask_steps: int | None = None,
) -> Reader:
    """Probe and segmenter trained on the episodes `learn`, with their error on `check`.

    steps, mask_steps: of training; by default as many as frames and half as many, up to 1500 and 400.
    Raises EvaluationError where no tracked body is ever visible.
    """
    frames = np.concatenate([t.images(range(len(t)))[:, 0] for t in learn])
    states = _joined([true_states(t.ground_truth) for t in learn])
    bodies = states.present.any(0)
    if not bodies.any():
        raise EvaluationError("no body of this environment's ground truth is ever visible: there is nothing to read")
    masks = np.concatenate([t.ground_truth.mask for t in learn])[:, bodies]
    rows = np.random.default_rng(seed).permutation(len(frames))[:TRAIN_FRAMES]
    rows.sort()
    known = _only(states, rows, bodies)
    probe = train_probe(frames[rows], known, seed, steps or min(1500, len(rows)))
    segmenter = train_segmenter(frames[rows], masks[rows], seed, mask_steps or min(400, 1 + len(rows) // 2))
    real = np.concatenate([t.images(range(len(t)))[:, 0] for t in check])
    known = _only(_joined([true_states(t.ground_truth) for t in check]), np.arange(len(real)), bodies)
    return Reader(probe, segmenter, bodies, probe_error(probe, real, known))


def _only(states: States, rows: np.ndarray, bodies: np.ndarray) -> States:
    return States(*(x[rows][:, bodies] for x in (states.position, states.present, states.area)))


def _joined(parts: Sequence[States]) -> States:
    return States(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(States)))


EPSILON = 0.02
"""Metres from its start at which a body counts as moved; more where the probe is less accurate."""


def law_errors(truth: GroundTruth, states: States, dt: float, epsilon: float = EPSILON) -> dict[str, float]:
    """The figures of `NAMES` that hold in any environment, of one continuation. 0 is best, NaN without a case.

    truth: with masks, of the T instants.   states: read from as many frames.   dt: seconds between them.
    epsilon: see `contact_causality`.
    Contacts are the true ones, as the actions are. The motion of a touched body is the model's.
    """
    exists, position = truth.exists, states.position
    known, touched = truth.position, truth.contact[:, :, -1]
    gone = physical.permanence(truth.area >= VISIBLE, states.present)
    causes = physical.contact_causality(known, position, touched, touched, epsilon)
    both = np.isfinite(position).all(-1) & exists
    out = {
        "lost": gone.lost,
        "lost_again": gone.lost_again,
        "invented": gone.invented,
        "size_drift": physical.size_drift(truth.area, states.area),
        "teleports": physical.teleports(known, position, dt),
        "premature": causes.premature,
        "missed": causes.missed,
        "lag": causes.lag,
    }
    figures = {name: figure.value for name, figure in out.items()}
    return figures | {"ade": ade(known[both], position[both]) if both.any() else np.nan}


def _figures(where: EnvSpec, c: Continuation, frames: np.ndarray, eyes: Reader, dt: float) -> dict[str, float]:
    truth, states = c.reference.ground_truth.at(c.steps), eyes.states(np.ascontiguousarray(frames[:, 0]))
    env = where.shared(c.reference.task)
    if env.rigid_bodies:
        env.restore(c.reference.start, render=False)
        return errors(env, truth, states, dt)
    return law_errors(truth, states, dt, max(EPSILON, eyes.error.position_p95))


@dataclass(frozen=True)
class PhysicsMeasurement:
    """Measurements of the physical axis.

    laws, still: violations of imagined frames, and of a video that stands still, each beside those of real frames.
    moves, ceiling: Physics-IQ's figures of imagined and of real frames, both read by the segmenter, against the
        simulator's masks.
    retakes: Physics-IQ's figures of second takes by their true masks; empty where an environment has none.
    error: of the probe.
    """

    continuations: tuple[Continuation, ...]
    laws: Violations
    still: Violations
    moves: tuple[PhysicsIQ, ...]
    ceiling: tuple[PhysicsIQ, ...]
    retakes: tuple[PhysicsIQ, ...]
    error: ProbeError


def measure_physics(
    model: Model, env: EnvSpec, *, episodes: int = 6, seed: int = 0, processes: int = 2
) -> PhysicsMeasurement:
    """Measures everything on `episodes` reference episodes a task; as many others train the reader.

    The result does not depend on the number of processes. Raises UnsupportedQuery, WamkitError and EvaluationError as
    `reference_episodes` and `free_run` do.
    """
    how = {"episodes": episodes, "processes": processes, "spec": model.spec}
    real = reference_episodes(env, first=0, **how)
    others = reference_episodes(env, first=episodes, desc="training references", **how)
    again = []
    if second := ENVIRONMENTS.get(env.env).second_take:
        shaken = replace(env, options={**env.options, **second})
        again = reference_episodes(shaken, first=0, desc="second takes", **how)
    return examine(free_run(model, real, seed=seed), env, reader(others, real, seed=seed), model.spec.fps, again)


def examine(
    went: Sequence[Continuation], env: EnvSpec, eyes: Reader, fps: float, again: Sequence[ReferenceEpisode] = ()
) -> PhysicsMeasurement:
    """Measurements of continuations, as `eyes` reads them. again: second takes of the reference episodes."""
    dt = float(np.diff(went[0].steps)[0]) / fps
    rows: dict[str, list[Any]] = {"imagined": [], "real": [], "still": [], "moves": [], "ceiling": []}
    for c in went:
        shown = c.reference.images(c.steps)
        frozen = np.broadcast_to(shown[:1], shown.shape)
        for name, frames in (("imagined", c.frames), ("real", shown), ("still", frozen)):
            rows[name].append(_figures(env, c, frames, eyes, dt))
        for name, frames in (("moves", c.frames), ("ceiling", shown)):
            rows[name].append(_moves(c, frames, shown, eyes, dt))
    return PhysicsMeasurement(
        tuple(went),
        Violations.of(rows["imagined"], rows["real"]),
        Violations.of(rows["still"], rows["real"]),
        tuple(rows["moves"]),
        tuple(rows["ceiling"]),
        tuple(_retakes(went, again, dt)),
        eyes.error,
    )


def _moves(c: Continuation, frames: np.ndarray, shown: np.ndarray, eyes: Reader, dt: float) -> PhysicsIQ:
    """Physics-IQ's figures of frames: motion in space and time, against the simulator's own masks."""
    truth, frames = c.reference.ground_truth.at(c.steps), np.ascontiguousarray(frames[:, 0])
    read = motion_mask(eyes.masks(frames), eyes.states(frames).position, dt, _slow(dt))
    known = motion_mask(truth.mask, truth.position, dt, _slow(dt))
    return physics_iq(known, read, shown[:, 0], frames)


def _slow(dt: float) -> float:
    """Speed in m/s below which a body rests: a centimetre per frame, about the accuracy of a probe."""
    return 0.01 / dt


def _retakes(went: Sequence[Continuation], again: Sequence[ReferenceEpisode], dt: float) -> list[PhysicsIQ]:
    """Physics-IQ's figures of the same scenes with other masses, frictions and positions: a limit for every model."""
    second, out = {(t.task, t.seed): t for t in again}, []
    for c in went:
        other = second.get((c.reference.task, c.reference.seed))
        steps = [s for s in c.steps if other is not None and s < len(other)]
        if len(steps) > 1:
            a, b = (t.ground_truth.at(steps) for t in (c.reference, other))
            masks = (motion_mask(x.mask, x.position, dt, _slow(dt)) for x in (a, b))
            out.append(physics_iq(*masks, c.reference.images(steps)[:, 0], other.images(steps)[:, 0]))
    return out


def _mean(x: np.ndarray, fmt: str) -> str:
    return f"{np.nanmean(x):{fmt}}" if np.isfinite(x).any() else "undefined"


def physics_tables(found: PhysicsMeasurement, seed: int = 0) -> list[Table]:
    """Two tables: violations of laws, and motion in space and time."""
    episode = np.arange(len(found.continuations))
    rows = []
    for name, (words, fmt, unit) in NAMES.items():
        if name not in found.laws.metric:
            continue
        bounds = (-1.0, 1.0) if fmt.endswith("%") or name == "contact_f1_error" else (-inf, inf)
        excess = found.laws.interval(name, episode, seed, bounds)
        if excess.undefined:
            continue
        cases = int(np.isfinite(found.laws.excess(name)).sum())
        imagined, floor, still = (
            _mean(x[name], fmt) for x in (found.laws.metric, found.laws.floor, found.still.metric)
        )
        note = f"imagined {imagined}, read off real frames {floor}, if nothing moved {still}; {unit}; {cases} clips"
        rows.append(Row(name, words, excess.value, excess, fmt=fmt, note=note))
    e, longest = found.error, max(c.steps[-1] for c in found.continuations)
    how = (
        f"{len(found.continuations)} real episodes that it continues from its own frames for up to {longest} steps. A "
        "probe reads bodies off frames. Each figure is its reading of imagined frames less that of real ones: 0 is as "
        f"lawful as reality. On real frames it is {e.position:.3f} m off (95 %: {e.position_p95:.3f} m)."
    )
    tables = [Table("physics", "Does it break the laws of physics?", how, tuple(rows), PHYSICAL)]
    if moved := _moved(found, seed):
        how = (
            "Overlap of the pixels of moving bodies, imagined and true (Physics-IQ's three figures, on the simulator's "
            "masks), over that of the same segmenter on real frames. 1 is as good as reality, 0 is no overlap."
        )
        tables.append(Table("motion", "Does it move what moves, where and when?", how, tuple(moved), PHYSICAL))
    return tables


def _moved(found: PhysicsMeasurement, seed: int) -> list[Row]:
    rows = []
    words = {"spatial": "where", "spatiotemporal": "where and when", "weighted": "where and how much"}
    for name, label in words.items():
        top, bottom = (np.array([getattr(c, name) for c in side]) for side in (found.moves, found.ceiling))
        ratio = _over(top, bottom, seed)
        if not ratio.undefined:
            note = f"overlap imagined {np.nanmean(top):.2f}, real {np.nanmean(bottom):.2f}"
            if found.retakes:
                again = np.nanmean([getattr(c, name) for c in found.retakes])
                note += f"; a second take with {JITTER:.0%} other masses, frictions and places {again:.2f}"
            rows.append(Row(name, label, ratio.value, ratio, fmt=".2f", note=note))
    if rows:
        ceiling = found.retakes or found.ceiling
        try:
            score, _ = physics_iq_score(found.moves, ceiling)
        except EvaluationError:  # second takes that have nothing in common
            return rows
        note = "over " + ("second takes" if found.retakes else "real frames, for a replay of this simulator is exact")
        rows.append(Row("physics_iq", "Physics-IQ's score", score, None, fmt=".0f", note=f"of 100, {note}"))
    return rows


def _over(top: np.ndarray, bottom: np.ndarray, seed: int) -> Interval:
    known = np.isfinite(top) & np.isfinite(bottom)
    if not known.any() or not bottom[known].sum():
        return UNDEFINED
    return bootstrap_ratio(top[known], bottom[known], np.arange(known.sum()), seed, bounds=(0.0, inf))


def worst_continuations(found: PhysicsMeasurement, count: int = 2) -> list[Worst]:
    """Videos of the continuations with the largest errors of position."""
    away = found.laws.excess("ade")
    order = [i for i in np.argsort(-np.nan_to_num(away, nan=-np.inf)) if np.isfinite(away[i])][:count]
    out = []
    for i in order:
        c = found.continuations[i]
        real, imagined = c.reference.images(c.steps)[:, 0], c.frames[:, 0]
        note = f"seed {c.reference.seed}, bodies {100 * away[i]:.0f} cm further off than the probe is"
        columns = {"happened": real, "imagined": imagined, "difference": difference(real, imagined)}
        out.append(Worst(PHYSICAL, c.reference.task, columns, 3.0, note))
    return out


@EVALUATIONS.register("physics")
class PhysicsLaws(Evaluation):
    """Violations of physics in free-running rollouts, where an environment tells the truth about its bodies."""

    suite, order, needs_snapshots = "full", 40, True

    def needs(self, context: Context) -> bool:
        return context.imagines and bool(ENVIRONMENTS.get(context.env.env).tracked_bodies)

    def run(self, context: Context) -> EvalResult:
        o = context.options
        found = measure_physics(context.model, context.env, episodes=o.held_out, processes=o.processes)
        return EvalResult(tuple(physics_tables(found)), tuple(worst_continuations(found)))
