"""Action recoverability: an inverse dynamics model, trained on real frames alone, reads actions off imagined frames.

It shares nothing with the model that it evaluates: other recordings, other weights, another architecture. Its error on
real frames is the floor. What it reads off imagined frames is compared with the actions that these frames should show.
A model whose frames it cannot read may still be right: look at the floor and the control first. (WoW, arXiv:2509.22642,
executes such actions on a robot.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from wamkit.data.embodiment import Embodiment
from wamkit.data.loading.windows import Frames, Windows, shuffled_within
from wamkit.eval.metrics.intervals import paired_ratio
from wamkit.eval.queries import answerable, query_windows, row_batches, whole_windows, window_seeds
from wamkit.inference.model import Model
from wamkit.nn.conv_reader import conv_reader
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.scaling import is_constant, measured
from wamkit.types import UNDEFINED, EvaluationError, Interval, Query, Spec


class Inverse(nn.Module):
    """Actions of a chunk from the present frame and those `spec.frame_offsets` later."""

    def __init__(self, spec: Spec, views: int, action: Float[np.ndarray, "N a"], width: int = 32):
        super().__init__()
        self.spec = spec
        self.net = conv_reader(3 * views * (1 + len(spec.frame_offsets)), spec, spec.chunk * action.shape[1], width)
        mean, std = map(torch.from_numpy, measured(action, "mean_std"))
        self.normalizer = Normalizer({"action": (mean, std)})

    def forward(
        self, now: UInt8[Tensor, "B V 3 H W"], future: UInt8[Tensor, "B F V 3 H W"]
    ) -> Float32[Tensor, "B A a"]:
        """Normalised actions. The input holds differences to the present frame, which carry the information."""
        x = now.float().flatten(1, 2) / 255
        y = future.float().flatten(1, 3) / 255
        changes = y - x.repeat(1, len(self.spec.frame_offsets), 1, 1)
        return self.net(torch.cat([x, changes], 1)).unflatten(1, (self.spec.chunk, -1))

    @torch.no_grad()
    def read(self, now: UInt8[Tensor, "B V 3 H W"], future: UInt8[Tensor, "B F V 3 H W"]) -> Float32[Tensor, "B A a"]:
        """Actions in the robot's units."""
        return self.normalizer.decode("action", self(now, future))

    def distance(self, read: Float32[Tensor, "B A a"], actions: Float32[Tensor, "B A a"]) -> Float32[Tensor, "B A a"]:
        """Differences between actions in units of their own deviation; 0 in dimensions that never moved."""
        return self.normalizer.encode("action", read) - self.normalizer.encode("action", actions)


def train_inverse(
    frames: Frames,
    spec: Spec,
    *,
    seed: int = 0,
    steps: int = 600,
    batch: int = 64,
    progress: bool = True,
    robot: Embodiment | None = None,
) -> Inverse:
    """A model of `frames`, none of which the evaluated model was trained on; on one core about a minute. Same seed,
    same weights.

    robot: the embodiment of the evaluated model, whose cameras it reads; None for all cameras.
    """
    torch.manual_seed(seed)
    action = frames.action[frames.rows()]
    views = frames.images.shape[1] if robot is None else len(robot.seen_cameras())
    model = Inverse(spec, views, action)
    windows = Windows(frames, spec, seed=seed, batch_size=batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in tqdm(range(steps), desc="inverse dynamics", unit="step", leave=False, disable=not progress):
        b = answerable(windows.batch(step), robot)
        # Only where all frames exist: at the end of an episode the last one is repeated.
        valid = (b.action_valid & b.frame_valid.all(1, keepdim=True))[..., None].float()
        error = (model(b.obs, b.future) - model.normalizer.encode("action", b.action)).square() * valid
        loss = error.sum() / (valid.sum() * action.shape[1]).clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@dataclass(frozen=True)
class ActionRecoverability:
    """Mean squared errors in units of each action's own deviation, on W held-out windows, (W,) each.

    real: read off real frames, against what was executed: the floor.   shuffled: the same against another window's
    actions.
    forward: off frames imagined for the executed actions, against those.   joint: off frames imagined along with
    actions, against those. None where the model does not do that.   r2: float (a,), of `real`, 1 is read exactly, 0 is
    guessing the mean, NaN an action that never moves.
    """

    episode: np.ndarray
    real: Float[np.ndarray, " W"]
    shuffled: Float[np.ndarray, " W"]
    forward: Float[np.ndarray, " W"] | None
    joint: Float[np.ndarray, " W"] | None
    r2: Float[np.ndarray, " a"]

    def over(self, name: str, reference: str, seed: int = 0) -> Interval:
        """Ratio of two errors, pooled; intervals resample episodes. NaN without one, or where the reference is 0."""
        a, b = getattr(self, name), getattr(self, reference)
        return UNDEFINED if a is None or b is None or not b.sum() else paired_ratio(a, b, self.episode, seed)


def action_recoverability(
    model: Model, inverse: Inverse, frames: Frames, *, stride: int = 8, seed: int = 0, steps: int | None = None
) -> ActionRecoverability:
    """Evaluates `model` with `inverse` on every `stride`-th window of validation episodes.

    Raises EvaluationError where no episode holds a window.
    """
    spec = model.spec
    starts = whole_windows(frames, spec, stride)
    if not len(starts):
        raise EvaluationError(f"no episode is longer than {max(*spec.frame_offsets, spec.chunk)} steps")
    every = answerable(Windows(frames, spec, seed=0, batch_size=1).gather(starts), model.embodiment)
    other = every.action[torch.from_numpy(shuffled_within(every.text, seed))]

    def error(read: Tensor, actions: Tensor) -> np.ndarray:
        return inverse.distance(read, actions).square().mean((1, 2)).double().numpy()

    parts: dict[str, list[np.ndarray]] = {}
    reads = []
    for rows in row_batches(len(starts)):
        b = every.rows(torch.from_numpy(rows))
        read = inverse.read(b.obs, b.future)
        reads.append(read)
        found = {"real": error(read, b.action), "shuffled": error(read, other[rows])}
        seeds = window_seeds(starts[rows], seed)
        for name, query in (("forward", Query.FORWARD), ("joint", Query.JOINT)):
            if query in model.queries:
                out = query_windows(model, b, query, seeds, steps=steps)
                if out.future is not None:
                    shown = b.action if query is Query.FORWARD else torch.from_numpy(out.actions)
                    found[name] = error(inverse.read(b.obs, torch.from_numpy(out.future)), shown)
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    read, action = torch.cat(reads), every.action
    spread = (action - action.mean((0, 1))).square().sum((0, 1))
    r2 = 1 - (read - action).square().sum((0, 1)) / spread  # NaN where nothing moves
    r2[is_constant(*measured(action.flatten(0, 1).numpy(), "mean_std"))] = torch.nan
    names = ("real", "shuffled", "forward", "joint")
    errors = (np.concatenate(parts[name]) if name in parts else None for name in names)
    return ActionRecoverability(frames.episode[starts], *errors, r2.numpy())
