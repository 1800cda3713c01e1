"""`cascade_geom`: a flow planner imagines the motion of every scene point, and geometry reads the actions off it.

Stands for the leaf cascaded / explicit / geometric extraction (AVDC, arXiv:2310.08576; Im2Flow2Act, arXiv:2407.15208;
3DFlowAction, arXiv:2506.06199). The plan is a "flow image": displacements in metres, at every future frame, of a grid
of points that a depth camera sees now. Rigid motions fitted to it (weighted Kabsch) give the motion of the hand and of
the object that it moves; a proportional controller follows. No action label is used in training, so videos without
actions teach it as much.

Departures from the reference code:
* Points are anchored in the present frame: no tracker and no segmentation at run time. AVDC needs the object's true
  mask and an optical flow between imagined frames; here a robot knows which points lie on itself, and other moving
  points are the object.
* Flow in three dimensions from the start, so a rigid fit is one SVD. AVDC searches 2-D flow for it with `minimize` and
  up to 50 random restarts, and keeps points that left the image on its border.
* The hand's own motion is part of the plan, as in no reference: they know grasps from elsewhere and move objects. It
  makes approach, contact and retreat one primitive; the object's motion corrects it in contact and chooses the grip.
* The network estimates the clean flow instead of the velocity (JiT, arXiv:2511.13720), which follows from it: a token
  has 384 values, and their noise would not fit through its width, as the motion of few rigid bodies does.

Off-expert rows train nothing here: they do not show the task's outcome.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from wamkit.config import ConfigError
from wamkit.families.base import FAMILIES, Family, Taxonomy
from wamkit.nn import Cache, NoisyStream, Normalizer, Tokens, flow
from wamkit.nn.attention_mask import CONTEXT, FUTURE, Program, Segment, table
from wamkit.nn.family_options import CascadeGeomConfig
from wamkit.nn.tokens import check_finite
from wamkit.types import Answer, Batch, Query, Spec


def kabsch(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The rigid motion (R (..., 3, 3), t (..., 3)) with the least sum of weight |R x + t - y|^2, never a reflection.

    x, y: (..., K, 3).
    weight: (..., K), at least 0. Without any weight the motion is the identity (Kabsch 1976; Umeyama 1991).
    """
    w = (weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)).unsqueeze(-1)
    cx, cy = (w * x).sum(-2), (w * y).sum(-2)
    U, _, Vh = torch.linalg.svd(((x - cx.unsqueeze(-2)) * w).mT @ (y - cy.unsqueeze(-2)))
    V, turn = Vh.mT, torch.ones_like(cx)
    turn[..., 2] = torch.det(V @ U.mT).sign()
    R = (V * turn.unsqueeze(-2)) @ U.mT
    return R, cy - (R @ cx.unsqueeze(-1)).squeeze(-1)


def waypoints(points: Tensor, flow: Tensor, hand: Tensor, config: CascadeGeomConfig) -> tuple[Tensor, Tensor]:
    """The hand's position at every future frame (B, F, 3), and 1 where it pushes, -1 where it pulls, else 0 (B,).

    points: (B, K, 4).
    flow: (B, F, K, 3), imagined.
    hand: (B, 3), in the same frame.

    Without contact, the hand moves as the robot's points around it do. Where the rigid motion of the other moving
    points agrees with that, the hand is in contact, and p' = T p with the object's T, as in AVDC, is mixed in. Points
    that are driven away from the hand are pushed.
    """
    x, robot = points[:, None, :, :3], points[:, None, :, 3]
    y, near = x + flow, torch.exp(-0.5 * ((x - hand[:, None, None]).norm(dim=-1) / config.reach).square())

    def carried(weight: Tensor) -> Tensor:
        R, t = kabsch(x.expand_as(y), y, weight.expand(y.shape[:-1]))
        return (R @ hand[:, None, :, None]).squeeze(-1) + t

    own, moves = carried(robot * near), (1 - robot) * (flow.norm(dim=-1) > config.moving)
    along, way = carried(moves), own - hand[:, None]
    agree = (along - own).norm(dim=-1) < 0.5 * way.norm(dim=-1)
    contact = (agree & (moves.sum(-1) >= 3)).unsqueeze(-1)
    last = moves[:, -1, :, None]
    drive = (((x[:, 0] - hand[:, None]) * last).mean(1) * (flow[:, -1] * last).mean(1)).sum(-1)
    return torch.where(contact, own.lerp(along, config.carry), own), drive.sign()


def controller(frame_offsets: Sequence[int], chunk: int, config: CascadeGeomConfig) -> Tensor:
    """The matrix (A, F) from displacements between consecutive waypoints to actions.

    The hand follows its target `lag` steps behind, so step i asks for the speed that is planned `lag` steps later.
    Speeds are given in the middle of each interval, linear between, constant beyond.
    """
    ends = np.array((0, *frame_offsets), float)
    middle, at = (ends[1:] + ends[:-1]) / 2, np.arange(chunk) + 0.5 + config.lag
    speed = np.stack([np.interp(at, middle, one) for one in np.eye(len(middle))], 1) / np.diff(ends)
    return torch.tensor(speed / config.unit, dtype=torch.float32)


def act(
    points: Tensor, flow: Tensor, proprio: Tensor, control_AF: Tensor, config: CascadeGeomConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Actions (B, A, 4) that follow an imagined flow (B, F, K, 3), with its waypoints and grip.

    Fingers close to push and open to pull; with nothing to move they stay (proprio: x, y, z, opening).
    """
    hand = proprio[:, :3]
    way, push = waypoints(points, flow, hand, config)
    legs = torch.diff(way, dim=1, prepend=hand.unsqueeze(1))
    stay = torch.where(proprio[:, 3] < 0.5, 1.0, -1.0)
    grip = torch.where(push == 0, stay, push)
    move = torch.einsum("af,bfx->bax", control_AF, legs)
    action = torch.cat([move, grip[:, None, None].expand(-1, len(control_AF), 1)], -1)
    return action.clamp(-1, 1), way, push


@FAMILIES.register("cascade_geom")
class CascadeGeom(Family):
    """A planner of the scene's flow, and a controller that follows its rigid motions."""

    name = "cascade_geom"
    taxonomy = Taxonomy(
        "cascaded / explicit / geometric extraction",
        "flow of scene points",
        "rigid motions are fitted to the imagined flow",
        "waypoints and a controller",
        "no action labels",
    )
    queries = frozenset({Query.POLICY})
    needs_point_cloud = True
    Config = CascadeGeomConfig

    def __init__(self, config: CascadeGeomConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        c, D = config, config.width
        if spec.action_dim != 4 or spec.proprio_dim < 4:
            raise ConfigError(
                f"cascade_geom drives robots whose actions are dx, dy, dz and gripper, and whose proprioception starts "
                f"with the hand's x, y, z in metres and its opening; this one has {spec.action_dim} and "
                f"{spec.proprio_dim} dimensions"
            )
        if not spec.point_grid or spec.point_grid % c.patch:
            raise ConfigError(f"patch {c.patch}: must divide the points a side of their grid, {spec.point_grid}")
        self.frames, self.side, values = len(spec.frame_offsets), spec.point_grid // c.patch, c.patch**2
        self.context = c.build_context(spec)
        centres = [(torch.arange(self.side) + 0.5) * n / self.side for n in (spec.height, spec.width)]
        time = torch.tensor([float(spec.frame_offsets[-1])])
        place = torch.stack(torch.meshgrid(time, *centres, indexing="ij"), -1).flatten(0, 2)
        self.stream = NoisyStream(FUTURE, 3 * self.frames * values, place, D)
        self.present = nn.Linear(4 * values, D)
        self.trunk = c.build_trunk()
        self.register_buffer("control_AF", controller(spec.frame_offsets, spec.chunk, c), persistent=False)
        self.declare(self.trunk)

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        """The planner's; geometry sees the planned flow, the present points and the hand."""
        segments = [Segment(CONTEXT, self.context.length), Segment(FUTURE, self.stream.length)]
        return segments, table(segments, Program.DECOUPLED)

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        """The flow-matching loss of demonstrations, written for the estimate of the clean flow, moving points first."""
        valid = (batch.frame_valid & batch.is_demonstration.unsqueeze(1))[:, :, None, None]
        motion = batch.point_flow.masked_fill(~batch.frame_valid[:, :, None, None], 0)
        x = self._fold(self.normalizer.encode("point_flow", motion))
        sigma = flow.shift_sigma(flow.uniform_sigma(len(batch), generator), self.config.future_shift).to(x.device)
        noisy, _ = flow.corrupt(x, sigma, generator)
        context = self.context(batch, self.normalizer, generator)
        y, _ = self.trunk([*context, self._tokens(noisy, sigma, batch)], self.attention_mask(x.device))
        error = (self.stream.velocity(y[-1]) - x).square()
        weight = 1 + self.config.moving_weight * (motion.norm(dim=-1, keepdim=True) > self.config.moving)
        weight = self._fold((weight * valid).expand_as(motion))
        return {"future": (error * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)}

    def generate(self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int) -> Answer:
        _, cache = self.trunk(self.context(batch, self.normalizer))
        noise = flow.row_noise(generators, (self.stream.length, self.stream.channels), batch.obs.device)
        path = flow.denoise(steps, self.config.future_shift)
        x = flow.integrate(lambda x, s: self._velocity(x, s, batch, cache), noise, path)
        motion = self.normalizer.decode("point_flow", self._unfold(x))
        check_finite(motion, "scene points")  # no rigid motion fits NaN
        action, _, _ = act(batch.point_cloud, motion, batch.proprio, self.control_AF, self.config)
        action = self.normalizer.held("action", action)
        return Answer(action, None, batch.point_cloud[:, None, :, :3] + motion)

    def _velocity(self, x: Tensor, sigma: Tensor, batch: Batch, cache: Cache) -> Tensor:
        """v = eps - x = (x_sigma - x) / sigma; never asked at sigma = 0, where a path ends."""
        y, _ = self.trunk([self._tokens(x, sigma, batch)], None, cache)
        return (x - self.stream.velocity(y[0])) / sigma

    def _tokens(self, x: Tensor, sigma: Tensor, batch: Batch) -> Tokens:
        """Noisy flow and the present points, relative to the hand, as tokens: one a square of the grid."""
        xyz = (batch.point_cloud[..., :3] - batch.proprio[:, None, :3]).clamp(-1, 1)
        present = self._fold(torch.cat([4 * xyz, batch.point_cloud[..., 3:]], -1).unsqueeze(1))
        return self.stream.tokens(x, sigma).plus(self.present(present))

    def _fold(self, x: Tensor) -> Tensor:
        """Values of points, (B, F, K, c), as one token a square: (B, L, F c patch^2)."""
        B, F, K, c = x.shape
        p, n = self.config.patch, self.side
        return x.view(B, F, n, p, n, p, c).permute(0, 2, 4, 1, 6, 3, 5).reshape(B, n * n, F * c * p * p)

    def _unfold(self, x: Tensor) -> Tensor:
        """The inverse of `_fold` for flows: (B, L, F 3 patch^2) -> (B, F, K, 3)."""
        p, n = self.config.patch, self.side
        x = x.view(len(x), n, n, self.frames, 3, p, p).permute(0, 3, 1, 5, 2, 6, 4)
        return x.reshape(len(x), self.frames, self.spec.point_grid**2, 3)
