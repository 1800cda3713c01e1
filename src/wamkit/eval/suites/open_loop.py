"""Open loop: quality of the futures imagined on validation episodes, and their sensitivity to actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from wamkit.data.loading.windows import Frames, Windows, shuffled_within
from wamkit.eval.metrics.image import Errors, Fidelity, Score, fidelity, moving_errors
from wamkit.eval.metrics.intervals import paired_ratio
from wamkit.eval.queries import answerable, query_windows, row_batches, whole_windows, window_seeds
from wamkit.eval.registry import EVALUATIONS, Context, Evaluation
from wamkit.eval.results import ACTION, VISUAL, EvalResult, Row, Table, Worst
from wamkit.eval.suites.recording import query_recording
from wamkit.inference.model import Model
from wamkit.types import Batch, Interval, Query
from wamkit.viz.images import difference

MOVES = 5e-3
"""Metres from which a scene point counts as moving."""


@dataclass(frozen=True)
class Imagination:
    """Measurements on W windows of validation episodes.

    episode, is_demonstration: int64 and bool (W,), the episode of each window and whether it is a demonstration.
    fidelity: query -> scores of its imagined futures; "ceiling" -> scores of the true ones after the model's own codec.
    action_sensitivity: errors with true and with shuffled actions, rows 0 and 1 of `sums`; None where not asked.
    action_error: query -> mean squared error (W,) against executed actions in robot units, NaN where nothing is valid.
    points: float64 (W, F, 3) for models that imagine scene points, else None. Over the points that move: sum of
    position errors in metres, sum of true displacements in metres (the error of standing still), and number of points.
    """

    episode: np.ndarray
    is_demonstration: np.ndarray
    fidelity: dict[str, Fidelity]
    action_sensitivity: Errors | None
    action_error: dict[str, np.ndarray]
    points: np.ndarray | None = None

    def points_over_still(self, frame: int, seed: int = 0) -> Interval:
        """Error of imagined points at future frame number `frame` over that of standing still, on demonstrations."""
        error, still, _ = self.points[self.is_demonstration, frame].T
        return paired_ratio(error, still, self.episode[self.is_demonstration], seed)

    def point_error(self, frame: int) -> float:
        """Mean error of those points, in metres."""
        error, _, count = self.points[self.is_demonstration, frame].sum(0)
        return float(error / max(count, 1))

    def true_over_shuffled(self, seed: int = 0) -> Interval:
        """Forward-dynamics error with true actions over that with actions shuffled within the task; below 1 is
        sensitive.
        """
        return paired_ratio(
            self.action_sensitivity.sums[0].sum(1), self.action_sensitivity.sums[1].sum(1), self.episode, seed
        )

    def inverse_over_policy(self, seed: int = 0) -> Interval | None:
        """Inverse-dynamics error over policy error, on demonstrations, both against what was executed.

        None where no demonstration has actions, or the policy makes no error.
        """
        rows = self.is_demonstration & np.isfinite(self.action_error["policy"])
        if not self.action_error["policy"][rows].sum():
            return None
        return paired_ratio(
            self.action_error["inverse"][rows], self.action_error["policy"][rows], self.episode[rows], seed
        )

    def demonstrations(self, query: str) -> tuple[Fidelity, np.ndarray]:
        """Scores of `query` on demonstration windows, and their episodes.

        An expert's next steps can be predicted from an observation, those of a random walk cannot.
        """
        part = self.fidelity[query]
        arrays = {k: v[self.is_demonstration] for k, v in vars(part).items() if isinstance(v, np.ndarray)}
        return Fidelity(part.offsets, part.pixels, **arrays), self.episode[self.is_demonstration]


def imagine(
    model: Model, frames: Frames, *, stride: int = 4, seed: int = 0, steps: int | None = None, progress: bool = True
) -> Imagination:
    """Asks `model` every query that it supports about every `stride`-th window of `frames`, and scores the answers.

    All queries of a window share one noise, drawn from (seed, window), so that comparisons are paired.
    """
    spec = model.spec
    starts = whole_windows(frames, spec, stride)
    every = answerable(Windows(frames, spec, seed=0, batch_size=1).gather(starts), model.embodiment)
    other = shuffled_within(every.text, seed)
    futures: dict[str, list[Fidelity]] = {}
    action_sensitivity: list[Errors] = []
    errors: dict[str, list[np.ndarray]] = {}
    points: list[np.ndarray] = []
    for rows in tqdm(list(row_batches(len(starts))), desc="imagine", unit="batch", disable=not progress):
        batch, seeds = every.rows(torch.from_numpy(rows)), window_seeds(starts[rows], seed)
        for query in sorted(model.queries):
            out = query_windows(model, batch, query, seeds, steps=steps)
            if out.actions is not None:
                errors.setdefault(query, []).append(action_error(out.actions, batch))
            if out.point_cloud is not None and query is Query.POLICY:
                points.append(_point_error(out.point_cloud, batch))
            if out.future is not None:
                futures.setdefault(query, []).append(_score(batch, torch.from_numpy(out.future), spec.frame_offsets))
            if query is Query.FORWARD:
                wrong = query_windows(
                    model, batch, query, seeds, steps=steps, actions=every.action.numpy()[other[rows]]
                )
                pair = [torch.from_numpy(x.future) for x in (out, wrong)]
                action_sensitivity.append(_moving(batch, pair))
        ceiling = model.reconstruct(batch)
        if ceiling is not None:
            futures.setdefault("ceiling", []).append(_score(batch, ceiling, spec.frame_offsets))
    joined = (
        Errors(
            np.concatenate([e.sums for e in action_sensitivity], 1),
            np.concatenate([e.count for e in action_sensitivity]),
        )
        if action_sensitivity
        else None
    )
    return Imagination(
        episode=frames.episode[starts],
        is_demonstration=frames.is_demonstration[frames.episode[starts]],
        fidelity={k: Fidelity.join(v) for k, v in futures.items()},
        action_sensitivity=joined,
        action_error={k: np.concatenate(v) for k, v in errors.items()},
        points=np.concatenate(points) if points else None,
    )


def _score(batch: Batch, future: Tensor, offsets: tuple[int, ...]) -> Fidelity:
    return fidelity(batch.obs, batch.future, future, offsets, batch.frame_valid, view_valid=batch.view_valid)


def _moving(batch: Batch, futures: Sequence[Tensor]) -> Errors:
    return moving_errors(batch.obs, batch.future, futures, batch.frame_valid, view_valid=batch.view_valid)


def _point_error(points: np.ndarray, batch: Batch) -> np.ndarray:
    """See `Imagination.points`; points is (B, F, K, 3)."""
    flow = batch.point_flow.numpy()
    moved = np.linalg.norm(flow, axis=-1)
    error = np.linalg.norm(points - batch.point_cloud.numpy()[:, None, :, :3] - flow, axis=-1)
    moves = (moved > MOVES) & batch.frame_valid.numpy()[..., None]
    return np.stack([(x * moves).sum(-1, dtype=np.float64) for x in (error, moved, moves)], -1)


def action_error(actions: np.ndarray, batch: Batch) -> np.ndarray:
    """Mean squared error of each row over its valid steps, NaN where there are none."""
    valid = batch.action_valid.numpy()[..., None]
    total, count = (
        (np.square(actions - batch.action.numpy()) * valid).sum((1, 2)),
        valid.sum((1, 2)) * actions.shape[-1],
    )
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def fidelity_table(model: Model, result: Imagination) -> Table:
    """Quality of imagined futures of demonstrations per query and horizon, and the codec's ceiling."""
    rows = []
    if not result.is_demonstration.any():
        return Table(
            "open_loop", "Is what it imagines right?", "Demonstrations only, of which there are none.", (), VISUAL
        )
    for query in (q for q in ("joint", "video", "forward", "ceiling") if q in result.fidelity):
        part, episode = result.demonstrations(query)
        for offset in model.spec.frame_offsets:
            s = part.score(offset, episode, seed=0)
            rows += _ceiling_rows(s) if query == "ceiling" else _fidelity_rows(query, s)
    for k, offset in enumerate(model.spec.frame_offsets if result.points is not None else ()):
        ratio = result.points_over_still(k)
        note = f"of points that move, in a policy query: {1000 * result.point_error(k):.1f} mm off on average"
        name = f"scene points, +{offset}: error / standing still"
        rows.append(Row(f"point_error.{offset}", name, ratio.value, ratio, fmt=".3f", note=note))
    how = "Skill is 1 for a perfect image and 0 for a copy of the current frame. Demonstrations only."
    return Table("open_loop", "Is what it imagines right?", how, tuple(rows), VISUAL)


def _ceiling_rows(s: Score) -> list[Row]:
    key, name = f"psnr.ceiling.{s.offset}", f"ceiling of the codec, +{s.offset}"
    note = "the true future, encoded and decoded"
    return [Row(key, name, s.psnr, s.psnr_range, fmt=".1f", unit="dB", note=note), _sharpness("ceiling", s)]


def _fidelity_rows(query: str, s: Score) -> list[Row]:
    given = "true actions given" if query == "forward" else "nothing given"
    skill = f"{given}; copying in brackets: "
    skill += f"PSNR {s.psnr:.1f} ({s.psnr_copy:.1f}) dB, SSIM {s.ssim:.3f} ({s.ssim_copy:.3f})"
    gain = f"better than copying; {s.moving_share:.0%} of pixels move; {s.windows} windows"
    name, at = f"{query}, +{s.offset}", f"{query}.{s.offset}"
    better = Row(f"skill.{at}", f"{name}: skill over copying", s.skill.value, s.skill, fmt=".3f", note=skill)
    moving = Row(
        f"moving_gain.{at}", f"{name}: on moving pixels", s.moving_gain.value, s.moving_gain, None, ".1f", "dB", gain
    )
    return [better, moving, _sharpness(query, s)]


def _sharpness(query: str, s: Score) -> Row:
    note = "edges of what moves, imagined / real: 1 is as sharp, less is blurred"
    key, name = f"sharpness.{query}.{s.offset}", f"{query}, +{s.offset}: sharpness"
    return Row(key, name, s.sharpness.value, s.sharpness, fmt=".2f", note=note)


def coupling_table(result: Imagination) -> Table:
    """Action sensitivity of imagined futures, and how much a future helps to read off actions."""
    rows = []
    if result.action_sensitivity is not None:
        ratio = result.true_over_shuffled()
        note = "error on moving pixels, same noise; below 1 it follows actions"
        name = "forward dynamics, true / shuffled actions"
        rows.append(Row("true_over_shuffled", name, ratio.value, ratio, fmt=".3f", note=note))
    if {"inverse", "policy"} <= set(result.action_error) and (ratio := result.inverse_over_policy()) is not None:
        note, name = "against executed actions; below 1 it reads the future", "inverse dynamics / policy, action error"
        rows.append(Row("inverse_over_policy", name, ratio.value, ratio, fmt=".3f", note=note))
    how = "Ratios of two errors on the same windows; intervals resample whole episodes."
    return Table("coupling", "Do image and action belong together?", how, tuple(rows), ACTION)


def worst_demonstrations(model: Model, frames: Frames, result: Imagination, count: int = 2) -> list[Worst]:
    """Videos of the demonstrations with the least skill at the furthest horizon, at most one per task."""
    query = next(q for q in ("joint", "video", "forward") if q in result.fidelity)
    part, episode = result.demonstrations(query)
    bottom, out = np.nan_to_num(part.mse_copy[:, -1]), {}
    top = np.nan_to_num(part.mse[:, -1])
    skill = {
        e: 1 - top[episode == e].sum() / bottom[episode == e].sum()
        for e in np.unique(episode)
        if bottom[episode == e].sum()
    }
    for e in sorted(skill, key=skill.__getitem__):
        text = frames.text[e]
        if text in out or len(out) == count:
            continue
        f = query_recording(model, frames, int(e), Query(query))
        real, guess = f.real[:, -1, f.views[0]], f.imagined[:, -1, f.views[0]]
        columns = {"happened": real, f"imagined +{part.offsets[-1]}": guess, "difference": difference(real, guess)}
        out[text] = Worst(VISUAL, text, columns, 10.0, f"validation episode {e}, skill {skill[e]:.2f}")
    return list(out.values())


@EVALUATIONS.register("open_loop")
class OpenLoop(Evaluation):
    """Quality of imagined futures, action sensitivity, and errors of actions."""

    order = 10

    def run(self, context: Context) -> EvalResult:
        result = imagine(context.model, context.frames, steps=context.protocol.steps)
        tables = fidelity_table(context.model, result), coupling_table(result)
        worst = worst_demonstrations(context.model, context.frames, result) if context.imagines else []
        return EvalResult(tables, tuple(worst))
