"""The vocabulary of the library: what is observed, recorded, learned from and imagined.

Shape legend used everywhere (suffix of a tensor name = its axes):
  B batch   T time (episode steps)   P past frames   F imagined frames   V camera views   C channels   H, W pixels
  A steps of an action chunk   a action dimensions   s proprioception dimensions
  L tokens   D model width   K keys

Public objects are typed dataclasses, never loose dictionaries.
"""

from __future__ import annotations

import difflib
import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt8, UInt16
from torch import Tensor

from wamkit.errors import WamkitError


class UnsupportedQuery(WamkitError):
    """A family was asked for a conditional that its method does not model."""


class ObservationError(WamkitError, ValueError):
    """An observation has the wrong keys, shapes, types or ranges."""


class Query(enum.StrEnum):
    """The five conditionals of p(o', a | o, l)."""

    POLICY = "policy"  # o, l -> a
    VIDEO = "video"  # o, l -> o'
    FORWARD = "forward"  # o, l, a -> o'
    INVERSE = "inverse"  # o, o' -> a
    JOINT = "joint"  # o, l -> o', a

    @classmethod
    def _missing_(cls, value: object) -> Query:
        match = difflib.get_close_matches(str(value), [q.value for q in cls], n=1)
        hint = f" (did you mean '{match[0]}'?)" if match else ""
        raise ObservationError(f"there is no query {value!r}{hint}; there are {', '.join(q.value for q in cls)}")

    @property
    def wants_action(self) -> bool:
        """Whether the answer holds actions."""
        return self in (Query.POLICY, Query.INVERSE, Query.JOINT)

    @property
    def wants_future(self) -> bool:
        """Whether the answer holds a future."""
        return self in (Query.VIDEO, Query.FORWARD, Query.JOINT)


@dataclass(frozen=True)
class Observation:
    """What a robot sees at one instant.

    images: uint8 (V, 3, H, W), one picture a camera, RGB, upright; None when the environment was told to skip rendering.
    proprio: float32 (s,), in the environment's own units.
    text: the instruction.
    past: for a model that looks back, what was seen at its `spec.past_offsets`, in that order, or what the model remembers of
    it (`Sample.memory`); None where the episode had not begun. Their own `past` and `text` are not read.
    point_cloud: float32 (K, 4), where the rays of a square grid of the first camera's pixels hit, row by row: x, y, z in world
    metres, and 1 on the robot itself (a robot knows that from its kinematics), else 0; None without a depth camera.
    """

    images: UInt8[np.ndarray, "V 3 H W"] | None
    proprio: Float32[np.ndarray, " s"]
    text: str
    past: tuple[Observation | KVMemory | None, ...] = ()
    point_cloud: Float32[np.ndarray, "K 4"] | None = None


@dataclass(frozen=True)
class KVMemory:
    """What a model has read of one moment: it stands for the observation in a later one's `past`, and is not read again.

    keys: float (N, 2, heads, L, d), for each of the model's N blocks keys and values of the moment's L tokens.
    model: whose they are; they mean nothing to another.
    """

    keys: Float[Tensor, "N 2 h L d"]
    model: Any = field(repr=False, compare=False)


@dataclass(frozen=True)
class Spec:
    """The shapes and clocks that data, model and environment must agree on.

    frame_offsets are the steps ahead, ascending, at which futures are imagined (the last one is at most `chunk`).
    past_offsets are the steps, negative and ascending, at which earlier observations are seen beside the present one.
    point_grid is a side of the grid of scene points that a model is shown; 0 for models that look at none.
    """

    cameras: tuple[str, ...]
    height: int
    width: int
    proprio_dim: int
    action_dim: int
    chunk: int = 16
    frame_offsets: tuple[int, ...] = (8, 16)
    past_offsets: tuple[int, ...] = ()
    fps: float = 80.0
    point_grid: int = 0

    @property
    def views(self) -> int:
        return len(self.cameras)


@dataclass
class Batch:
    """One batch of windows, in raw units (uint8 pixels, the robot's own action units). Masks are true where valid.

    obs: uint8 (B, V, 3, H, W), the current frame.           future: uint8 (B, F, V, 3, H, W).
    frame_valid: bool (B, F).                                proprio: float32 (B, s).
    action: float32 (B, A, a), what was executed.            action_expert: float32 (B, A, a), the clean label.
    action_valid: bool (B, A).                               text: B instructions.
    past: uint8 (B, P, V, 3, H, W), earlier frames.          past_proprio: float32 (B, P, s).
    past_valid: bool (B, P), false before the episode began.
    has_action: bool (B,), false for action-free video.      is_demonstration: bool (B,), false for off-expert episodes.
    features: what `Family.features` made of these windows, where the trainer computed it ahead; else empty.
    point_cloud: float32 (B, K, 4), see `Observation`.            point_flow: float32 (B, F, K, 3), where those points went, in metres.
    Both None unless the spec has points.
    memory: float (B, P, N, 2, heads, L, d), see `KVMemory`, in place of `past`; None where that is to be read.
    Of mixtures alone, else None (all valid, one source):   action_dim_valid: bool (B, a), which numbers of actions the row's robot has.
    view_valid: bool (B, V), which views.   source: int64 (B,), the data set that a row is from.
    """

    obs: UInt8[Tensor, "B V 3 H W"]
    future: UInt8[Tensor, "B F V 3 H W"]
    frame_valid: Bool[Tensor, "B F"]
    proprio: Float[Tensor, "B s"]
    action: Float[Tensor, "B A a"]
    action_expert: Float[Tensor, "B A a"]
    action_valid: Bool[Tensor, "B A"]
    past: UInt8[Tensor, "B P V 3 H W"]
    past_proprio: Float[Tensor, "B P s"]
    past_valid: Bool[Tensor, "B P"]
    text: list[str]
    has_action: Bool[Tensor, " B"]
    is_demonstration: Bool[Tensor, " B"]
    features: dict[str, Tensor] = field(default_factory=dict)
    point_cloud: Float[Tensor, "B K 4"] | None = None
    point_flow: Float[Tensor, "B F K 3"] | None = None
    memory: Float[Tensor, "B P N 2 h L d"] | None = None
    action_dim_valid: Bool[Tensor, "B a"] | None = None
    view_valid: Bool[Tensor, "B V"] | None = None
    source: Int[Tensor, " B"] | None = None

    def __len__(self) -> int:
        return self.obs.shape[0]

    def action_mask(self) -> Bool[Tensor, "B A a"]:
        """Which numbers of `action` were done: steps inside the episode, of rows with actions, in dimensions that the robot has."""
        step = (self.action_valid & self.has_action.unsqueeze(1)).unsqueeze(2)
        every = torch.ones_like(self.action[:, :1], dtype=torch.bool)
        return step & (every if self.action_dim_valid is None else self.action_dim_valid.unsqueeze(1))

    def map(self, function: Any) -> Batch:
        """Applies `function` to every tensor; the text stays."""
        fields: dict[str, Any] = {k: function(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Batch(**fields, text=self.text, features={k: function(v) for k, v in self.features.items()})

    def rows(self, index: Tensor) -> Batch:
        """The rows at `index` (int64 (N,)), in that order."""
        out = self.map(lambda x: x[index])
        out.text = [self.text[i] for i in index.tolist()]
        return out

    @staticmethod
    def cat(parts: Sequence[Batch]) -> Batch:
        """The rows of several batches that have the same fields, one after the other."""
        names = [k for k, v in vars(parts[0]).items() if isinstance(v, Tensor)]
        fields: dict[str, Any] = {k: torch.cat([getattr(p, k) for p in parts]) for k in names}
        features = {k: torch.cat([p.features[k] for p in parts]) for k in parts[0].features}
        return Batch(**fields, text=[t for p in parts for t in p.text], features=features)

    def to(self, device: torch.device | str) -> Batch:
        return self.map(lambda x: x.to(device, non_blocking=True))


@dataclass(frozen=True)
class Sample:
    """What a query returned, for B observations.

    actions: float32 (B, A, a) in the robot's own units, or None when the query asks for none.
    future: uint8 (B, F, V, 3, H, W), or None when the query asks for none.
    point_cloud: float32 (B, F, K, 3), where each observed point is imagined to be, in world metres; None for models that imagine none.
    memory: B of them, what the model has read of the observations; empty for models that keep nothing.
    """

    query: Query
    actions: Float32[np.ndarray, "B A a"] | None
    future: UInt8[np.ndarray, "B F V 3 H W"] | None
    point_cloud: Float32[np.ndarray, "B F K 3"] | None = None
    memory: tuple[KVMemory, ...] = ()


class Answer(NamedTuple):
    """What `Family.generate` returns; most families return the first two alone. See `Sample`.

    memory: (B, N, 2, heads, L, d), of the observations, from families that remember.
    """

    actions: Tensor | None
    future: Tensor | None
    point_cloud: Tensor | None = None
    memory: Tensor | None = None


@dataclass(frozen=True)
class SceneFlow:
    """Scene points of T frames, and what tells where each of them is at any other frame of the same episode.

    points: float32 (T, K, 4), see `Observation`.   body: int32 (T, K), the rigid body that each lies on.
    pose: float32 (T, M, 7), position and unit quaternion (w, x, y, z) of every body.
    """

    points: Float32[np.ndarray, "T K 4"]
    body: Int32[np.ndarray, "T K"]
    pose: Float32[np.ndarray, "T M 7"]

    def flow(self, now: np.ndarray, then: np.ndarray) -> Float32[np.ndarray, "B F K 3"]:
        """How far, in metres, the points of the frames `now` (int (B,)) have moved by the frames `then` (int (B, F)).

        x' = R' R^T (x - p) + p', with (R, p) and (R', p') the poses of the point's body then and now.
        """
        body, before = self.body[now], self.pose[now]
        start = np.take_along_axis(before, body[..., None], 1)[:, None]
        end = np.take_along_axis(self.pose[then], body[:, None, :, None], 2)
        x = self.points[now][:, None, :, :3]
        w, v = start[..., 3:4], -start[..., 4:]
        local = _turn(w, v, x - start[..., :3])
        return _turn(end[..., 3:4], end[..., 4:], local) + end[..., :3] - x


def _turn(w: np.ndarray, v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`x` (..., 3) turned by the unit quaternion with real part `w` (..., 1) and imaginary part `v` (..., 3)."""
    t = 2 * np.cross(v, x)
    return x + w * t + np.cross(v, t)


@dataclass(frozen=True)
class Snapshot:
    """Everything needed to put one simulator back to one instant, byte for byte.

    physics: float64 (n,), MuJoCo's mjSTATE_INTEGRATION vector.
    model: fields of the compiled model that differ from the freshly loaded one (MetaWorld places objects there).
    attributes: the environment's plain Python attributes (numbers, text, arrays, nested tuples and lists of them).
    """

    physics: np.ndarray
    model: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Span:
    """Steps `start` .. `stop` - 1 of an episode, in which `text` is the instruction or what a narrator says is done."""

    start: int
    stop: int
    text: str


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T steps: row t is what was seen before `action[t]` was executed.

    images: uint8 (T, V, 3, H, W), or None where nobody asked for pictures.   proprio: float32 (T, s), or (T, 0).
    action: float32 (T, a), executed, noise included; a = 0 in video without actions.   action_expert: float32 (T, a), the clean label
    (equal to `action` where there is no expert).   reward: float32 (T,) and success: bool (T,), both after the step.
    is_demonstration: false for episodes that show what actions do rather than how the task is done.
    snapshots: T of them, or None.   tracks: scene points of the T frames, or None.
    spans: where another text than `text` holds; `text` may then, and in what was imported, be empty: nobody said anything.
    source: what the episode is called where it was imported from; empty for our own.   extras: further numbers by name, (T, d).
    depth: by the name of its camera, uint16 (T, H, W), how far away what a pixel shows is, in millimetres; 0 where nothing was measured.
    ended: who ended a rollout, the environment for good (terminated) or for its time being up (truncated); "" where the caller
    stopped it, or nobody knows. Not stored.
    """

    task: str
    text: str
    seed: int
    fps: float
    cameras: tuple[str, ...]
    images: UInt8[np.ndarray, "T V 3 H W"] | None
    proprio: Float32[np.ndarray, "T s"]
    action: Float32[np.ndarray, "T a"]
    action_expert: Float32[np.ndarray, "T a"]
    reward: Float32[np.ndarray, " T"]
    success: Bool[np.ndarray, " T"]
    is_demonstration: bool = True
    noise: float = 0.0
    snapshots: tuple[Snapshot, ...] | None = None
    latency_s: tuple[float, ...] = field(default=())
    tracks: SceneFlow | None = None
    spans: tuple[Span, ...] = ()
    source: str = ""
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    depth: Mapping[str, UInt16[np.ndarray, "T H W"]] = field(default_factory=dict)
    ended: Literal["", "terminated", "truncated"] = ""

    def __len__(self) -> int:
        return len(self.action)

    def texts(self) -> list[str]:
        """The text of each step: of the last span that covers it, or the episode's."""
        out = [self.text] * len(self)
        for span in self.spans:
            out[span.start : span.stop] = [span.text] * (span.stop - span.start)
        return out

    @property
    def succeeded(self) -> bool:
        """True if the task was solved at any step."""
        return bool(self.success.any())


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval; `low <= high`, both may be infinite, all three NaN where undefined."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def excludes(self, point: float) -> bool:
        """True if the whole interval lies on one side of `point`; false where undefined."""
        return self.low > point or self.high < point

    @property
    def undefined(self) -> bool:
        return math.isnan(self.value)


UNDEFINED = Interval(math.nan, math.nan, math.nan)


class EvaluationError(WamkitError, ValueError):
    """Figures or pictures that cannot be scored or shown: wrong shape, dtype or range, or nothing to score."""
