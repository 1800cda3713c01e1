"""The vocabulary of the library: observations, batches, samples, episodes.

Tensor names end in their axes, one letter each:

    B  batch rows              T  steps of an episode
    P  past frames             F  future frames
    V  camera views            C  channels            H, W  pixels, height first
    A  steps of an action chunk
    a  action dimensions       s  proprioception dimensions
    K  points of the scene     L  tokens              D  model width

Arrays that people pass in and get back are NumPy; what a model computes with is torch. Images are RGB, uint8, upright.
"State" and "proprioception" are the same thing: what the robot measures of itself. Public objects are typed
dataclasses, never loose dictionaries.
"""

from __future__ import annotations

import enum
import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32, UInt8, UInt16

from wamkit.errors import WamkitError, nearest

if TYPE_CHECKING:  # torch takes a second to load, and recordings and wrong options need none of it
    import torch
    from torch import Tensor


class UnsupportedQuery(WamkitError):
    """The family's method does not model the conditional that was asked for."""


class ObservationError(WamkitError, ValueError):
    """An observation or a query is malformed: a wrong key, shape, type or range."""


class NotFinite(WamkitError):
    """A model computed values that are NaN or infinite: its weights, or what it was given, are not sane."""


class Query(enum.StrEnum):
    """The five conditionals of p(o', a | o, l), for observations o, actions a and an instruction l.

    `Query("policy")` works as well as `Query.POLICY`. Raises ObservationError for an unknown name, with the nearest.

    Examples:
        >>> Query("forward").wants_future, Query("forward").wants_action
        (True, False)
    """

    POLICY = "policy"  # o, l -> a
    VIDEO = "video"  # o, l -> o'
    FORWARD = "forward"  # o, l, a -> o'
    INVERSE = "inverse"  # o, o' -> a
    JOINT = "joint"  # o, l -> o', a

    @classmethod
    def _missing_(cls, value: object) -> Query:
        known = [q.value for q in cls]
        raise ObservationError(f"there is no query {value!r}{nearest(value, known)}; there are {', '.join(known)}")

    @property
    def wants_action(self) -> bool:
        """True if the answer contains actions."""
        return self in (Query.POLICY, Query.INVERSE, Query.JOINT)

    @property
    def wants_future(self) -> bool:
        """True if the answer contains future frames."""
        return self in (Query.VIDEO, Query.FORWARD, Query.JOINT)


class _InNotebooks:
    """Base of what notebooks show as HTML. `wamkit.viz`, which stands above, is named and not imported: it is loaded
    when a notebook asks."""

    def _repr_html_(self) -> str:
        return importlib.import_module("wamkit.viz.notebook").show(self)


@dataclass(frozen=True)
class Observation(_InNotebooks):
    """Everything that a robot observes at one instant, in the environment's own units.

    images: uint8 (V, 3, H, W), one image a camera. None where rendering was skipped.
    proprio: float32 (s,), the robot's state.
    text: the instruction.
    past: earlier observations for models with history, one for each of `Spec.past_offsets`, in that order. An entry is
        an `Observation`, the `KVMemory` that a model made of one (`Sample.memory`), or None before the episode began.
        The `past` and `text` of an earlier observation are ignored.
    point_cloud: float32 (K, 4), the scene points hit by the rays of a square grid of pixels of the first camera, row by
        row: x, y, z in world metres, then 1 for points on the robot itself (known from its kinematics), else 0.
        None without a depth camera.
    view_valid: bool (V,), the views that were seen; None for all. Images of the others are ignored.
    """

    images: UInt8[np.ndarray, "V 3 H W"] | None
    proprio: Float32[np.ndarray, " s"]
    text: str
    past: tuple[Observation | KVMemory | None, ...] = ()
    point_cloud: Float32[np.ndarray, "K 4"] | None = None
    view_valid: Bool[np.ndarray, " V"] | None = None


@dataclass(frozen=True)
class KVMemory:
    """Attention keys and values of one observation: in a later `past` they save encoding it again.

    keys: float (N, 2, heads, L, d), keys and values of the observation's L tokens in each of the model's N blocks.
    model: the model that made it. They are meaningless to any other.
    """

    keys: Float[Tensor, "N 2 h L d"]
    model: Any = field(repr=False, compare=False)


@dataclass(frozen=True)
class Spec:
    """The shapes and clocks on which data, model and environment must agree.

    cameras: names of the V views.
    height, width: pixels of every view.
    proprio_dim, action_dim: s and a.
    chunk: A, steps of an action chunk.
    frame_offsets: steps ahead at which future frames are predicted, ascending; the last is at most `chunk`.
    past_offsets: steps, negative and ascending, at which earlier observations accompany the present one.
    fps: control steps a second.
    point_grid: side of the grid of scene points, so K = point_grid**2; 0 for models without point clouds.

    Examples:
        >>> spec = Spec(("scene", "wrist"), height=64, width=64, proprio_dim=4, action_dim=4)
        >>> spec.views, spec.chunk, spec.frame_offsets
        (2, 16, (8, 16))
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
        """V, the number of camera views."""
        return len(self.cameras)


def half_chunk(chunk: int) -> int:
    """Actions of a chunk that a policy takes before it queries again, unless it is told a number."""
    return max(1, chunk // 2)


@dataclass
class Batch:
    """B windows of recorded episodes, in raw units: uint8 pixels, the robot's own action units.

    A window is a current frame, its past and future frames, and the actions from the current step on. Masks are true
    where valid. Beyond the ends of an episode frames and actions repeat the outermost one and are marked invalid.

    obs: uint8 (B, V, 3, H, W), the current frame.
    future: uint8 (B, F, V, 3, H, W), the frames at `Spec.frame_offsets`.
    frame_valid: bool (B, F).
    proprio: float32 (B, s), the current state.
    action: float32 (B, A, a), the executed actions, exploration noise included.
    action_expert: float32 (B, A, a), the expert's noise-free actions: the label to imitate.
    action_valid: bool (B, A).
    past: uint8 (B, P, V, 3, H, W), the frames at `Spec.past_offsets`.
    past_proprio: float32 (B, P, s).
    past_valid: bool (B, P), false before the episode began.
    text: B instructions.
    has_action: bool (B,), false for video without actions.
    is_demonstration: bool (B,), false for episodes that show what actions do rather than how the task is done.
    features: outputs of `Family.features` for these windows, where the trainer computed them ahead; else empty.
    point_cloud: float32 (B, K, 4), as in `Observation`; None unless the spec has a point grid.
    point_flow: float32 (B, F, K, 3), displacement of these points by each future frame, in metres; None likewise.
    memory: float (B, P, N, 2, heads, L, d), as in `KVMemory`, in place of `past`; None to encode `past` instead.
    action_dim_valid: bool (B, a), the action dimensions that the row's robot has. Set in mixtures only; None means all.
    view_valid: bool (B, V), the views that the row has: images of the others are zeros, and no loss counts them. None
        means all.
    source: int64 (B,), index of the row's data set. Set in mixtures only.
    prefix: int64 (B,), first steps of `action` that are decided already, so that the policy answers with what comes
        after them (`inference.realtime`). In training (B, P), a number for each of `Family.problems`. None means none.
    guide: float (B, A), weights from 0 to 1 by which a policy's answer is drawn to `action`. None for no guidance.
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
    prefix: Int[Tensor, " B"] | Int[Tensor, "B P"] | None = None
    guide: Float[Tensor, "B A"] | None = None

    def __len__(self) -> int:
        """B, the number of rows."""
        return self.obs.shape[0]

    def action_mask(self) -> Bool[Tensor, "B A a"]:
        """Valid elements of `action`: steps in the episode, rows with actions, dimensions of the row's robot."""
        import torch

        step = (self.action_valid & self.has_action.unsqueeze(1)).unsqueeze(2)
        every = torch.ones_like(self.action[:, :1], dtype=torch.bool)
        return step & (every if self.action_dim_valid is None else self.action_dim_valid.unsqueeze(1))

    def _tensors(self) -> list[str]:
        """Names of the fields that hold a tensor."""
        return [k for k, v in vars(self).items() if v is not None and k not in ("text", "features")]

    def map(self, function: Any) -> Batch:
        """A batch with `function` applied to every tensor; the text stays."""
        fields: dict[str, Any] = {k: function(getattr(self, k)) for k in self._tensors()}
        return Batch(**fields, text=self.text, features={k: function(v) for k, v in self.features.items()})

    def rows(self, index: Tensor) -> Batch:
        """The rows at `index`, int64 (N,), in that order."""
        out = self.map(lambda x: x[index])
        out.text = [self.text[i] for i in index.tolist()]
        return out

    @staticmethod
    def cat(parts: Sequence[Batch]) -> Batch:
        """The rows of several batches with the same fields, concatenated."""
        import torch

        fields: dict[str, Any] = {k: torch.cat([getattr(p, k) for p in parts]) for k in parts[0]._tensors()}
        features = {k: torch.cat([p.features[k] for p in parts]) for k in parts[0].features}
        return Batch(**fields, text=[t for p in parts for t in p.text], features=features)

    @staticmethod
    def random(spec: Spec, rows: int, seed: int = 0) -> Batch:
        """A batch of random values that satisfies `spec`, with everything valid, to try a family out."""
        import torch

        g = torch.Generator().manual_seed(seed)
        A, F, P, image = (
            spec.chunk,
            len(spec.frame_offsets),
            len(spec.past_offsets),
            (spec.views, 3, spec.height, spec.width),
        )
        normal = lambda *shape, g=g: torch.randn(rows, *shape, generator=g)  # noqa: E731
        frames = lambda *lead: torch.randint(0, 256, (rows, *lead, *image), generator=g, dtype=torch.uint8)  # noqa: E731
        true = lambda *shape: torch.ones(rows, *shape, dtype=torch.bool)  # noqa: E731
        action, proprio = normal(A, spec.action_dim), normal(spec.proprio_dim)
        batch = Batch(
            obs=frames(),
            future=frames(F),
            frame_valid=true(F),
            proprio=proprio,
            action=action,
            action_expert=action + 0.1 * normal(A, spec.action_dim),
            action_valid=true(A),
            past=frames(P),
            past_proprio=normal(P, spec.proprio_dim),
            past_valid=true(P),
            text=[("open the drawer", "close the window", "press it")[i % 3] for i in range(rows)],
            has_action=true(),
            is_demonstration=true(),
        )
        if K := spec.point_grid**2:  # scene points around the hand, every other one on the robot
            g = torch.Generator().manual_seed(seed + 1)
            robot = torch.arange(K).view(1, -1, 1).expand(rows, -1, -1) % 2
            batch.point_cloud = torch.cat([proprio[:, None, :3] + 0.1 * normal(K, 3, g=g), robot], -1)
            batch.point_flow = 0.05 * normal(F, K, 3, g=g)
        return batch

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return self.map(lambda x: x.to(device, non_blocking=True))


@dataclass(frozen=True)
class Sample(_InNotebooks):
    """The answer to a query, in the robot's own units: for one observation without, for B of them with a first axis B.

    query: the query that was asked.
    actions: float32 (A, a) or (B, A, a); None where `query.wants_action` is false.
    future: uint8 (F, V, 3, H, W) or (B, F, V, 3, H, W), the predicted frames; None where `query.wants_future` is false.
    point_cloud: float32 (F, K, 3) or (B, F, K, 3), predicted positions of the observed points, in world metres; None
        for models that predict none.
    memory: one entry an observation, to put into the `past` of later ones; empty for models without memory.
    """

    query: Query
    actions: Float32[np.ndarray, "*B A a"] | None
    future: UInt8[np.ndarray, "*B F V 3 H W"] | None
    point_cloud: Float32[np.ndarray, "*B F K 3"] | None = None
    memory: tuple[KVMemory, ...] = ()

    def row(self, i: int) -> Sample:
        """The answer for observation `i` of several, as if it had been asked alone."""
        actions, future, points = (None if x is None else x[i] for x in (self.actions, self.future, self.point_cloud))
        return Sample(self.query, actions, future, points, self.memory[i : i + 1])


@dataclass(frozen=True)
class Embedding:
    """Features of one observation, or of B of them with a first axis B (`Model.embed`).

    vector: float32 (D,) or (B, D), the mean of the tokens.
    tokens: float32 (L, D) or (B, L, D), one vector for each token that the model reads.
    kinds: the content of each of the L tokens: "image" for a cell of the images, "proprio", "text", ...
    """

    vector: Float32[np.ndarray, "*B D"]
    tokens: Float32[np.ndarray, "*B L D"]
    kinds: tuple[str, ...]


class Answer(NamedTuple):
    """The output of `Family.generate`, as tensors. Most families return only the first two.

    actions: float (B, A, a), in the units of the training data.
    future: uint8 (B, F, V, 3, H, W).
    point_cloud: float (B, F, K, 3), in world metres.
    memory: float (B, N, 2, heads, L, d), of the observations.
    """

    actions: Tensor | None
    future: Tensor | None
    point_cloud: Tensor | None = None
    memory: Tensor | None = None


@dataclass(frozen=True)
class SceneFlow:
    """Scene points of T frames and the poses of the bodies they lie on, which give their motion between any two frames.

    points: float32 (T, K, 4), as `Observation.point_cloud`.
    body: int32 (T, K), index of the rigid body that each point lies on.
    pose: float32 (T, M, 7), position in metres and unit quaternion (w, x, y, z) of each of M bodies.
    """

    points: Float32[np.ndarray, "T K 4"]
    body: Int32[np.ndarray, "T K"]
    pose: Float32[np.ndarray, "T M 7"]

    def flow(self, now: np.ndarray, then: np.ndarray) -> Float32[np.ndarray, "B F K 3"]:
        """Displacements, in metres, of the points of frames `now`, int (B,), by frames `then`, int (B, F).

        A point x on a body with pose (R, p) at `now` and (R', p') at `then` moves to x' = R' R^T (x - p) + p'.
        """
        body, before = self.body[now], self.pose[now]
        start = np.take_along_axis(before, body[..., None], 1)[:, None]
        end = np.take_along_axis(self.pose[then], body[:, None, :, None], 2)
        x = self.points[now][:, None, :, :3]
        w, v = start[..., 3:4], -start[..., 4:]
        local = _turn(w, v, x - start[..., :3])
        return _turn(end[..., 3:4], end[..., 4:], local) + end[..., :3] - x


def _turn(w: np.ndarray, v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`x` (..., 3) rotated by the unit quaternion with real part `w` (..., 1) and imaginary part `v` (..., 3)."""
    t = 2 * np.cross(v, x)
    return x + w * t + np.cross(v, t)


@dataclass(frozen=True)
class Snapshot:
    """The complete state of a simulator at one instant: restoring it reproduces the following steps byte for byte.

    physics: float64 (n,), MuJoCo's mjSTATE_INTEGRATION vector.
    model: fields of the compiled model that differ from the freshly loaded one (MetaWorld places objects there).
    attributes: the environment's plain Python attributes: numbers, text, arrays, nested tuples and lists of them.
    """

    physics: np.ndarray
    model: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Span:
    """Steps `start` to `stop` - 1 of an episode, described by `text`: an instruction or a narration."""

    start: int
    stop: int
    text: str


@dataclass(frozen=True)
class Episode(_InNotebooks):
    """One recorded episode of T steps. Row t holds what was observed before `action[t]` was executed.

    task: name of the task.
    text: the instruction. Empty where the data has none, as imported data may, or where only `spans` have texts.
    seed: seed of the reset; -1 where unknown.
    fps: steps a second.
    cameras: names of the V views.
    images: uint8 (T, V, 3, H, W); None where they were not read or rendered.
    proprio: float32 (T, s); s = 0 where none was recorded.
    action: float32 (T, a), the executed actions, noise included; a = 0 in video without actions.
    action_expert: float32 (T, a), the noise-free label; equal to `action` where there is no expert.
    reward: float32 (T,), after the step.
    success: bool (T,), after the step.
    is_demonstration: false for episodes that show what actions do rather than how the task is done.
    noise: scale of the action noise.
    snapshots: T simulator states, one before each step, or None.
    latency_s: seconds that the policy took to choose each action. Not stored.
    scene_flow: scene points of the T frames, or None.
    spans: steps whose text differs from `text`.
    source: name of the episode where it was imported from; empty for recordings by wamkit.
    extras: further columns by name, (T, d).
    depth: depth maps by camera, uint16 (T, H, W), in millimetres; 0 where nothing was measured.
    absent: cameras that saw nothing of this episode; their images are zeros.
    ended: "terminated" or "truncated" as the environment reported it; "" where the caller stopped or it is unknown.
        Not stored.
    touched, remaining: bool and float64 (T,), `info` of that name after each step (`Environment`); None where the
        environment does not tell. Not stored.
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
    scene_flow: SceneFlow | None = None
    spans: tuple[Span, ...] = ()
    source: str = ""
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    depth: Mapping[str, UInt16[np.ndarray, "T H W"]] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    ended: Literal["", "terminated", "truncated"] = ""
    touched: Bool[np.ndarray, " T"] | None = None
    remaining: Float64[np.ndarray, " T"] | None = None

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self.action)

    def texts(self) -> list[str]:
        """T texts, one a step: that of the last span covering the step, else the episode's."""
        out = [self.text] * len(self)
        for span in self.spans:
            out[span.start : span.stop] = [span.text] * (span.stop - span.start)
        return out

    @property
    def succeeded(self) -> bool:
        """True if the task was successful at any step."""
        return bool(self.success.any())


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    value: the estimate.
    low, high: bounds, low <= high; they may be infinite. All three are NaN where the figure is undefined.
    level: confidence of the interval.
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    def excludes(self, point: float) -> bool:
        """True if the whole interval lies on one side of `point`. False where undefined."""
        return self.low > point or self.high < point

    @property
    def undefined(self) -> bool:
        """True if there was no case to estimate from."""
        return math.isnan(self.value)


@dataclass(frozen=True)
class Target:
    """Bounds that a figure should keep, in its own unit; a recipe or a protocol declares them for its own figures.

    Examples:
        >>> Target(above=0.85).verdict(Interval(0.95, 0.83, 0.99))
        'not shown'
        >>> Target(above=0.85).words(".0%")
        'above 85 %'
    """

    above: float = -math.inf
    below: float = math.inf

    def verdict(self, figure: Interval) -> Literal["met", "missed", "not shown"]:
        """Met if the whole interval lies between the bounds, missed if all of it lies outside; else too few cases show
        neither. Not shown where the figure is undefined."""
        if self.above < figure.low and figure.high < self.below:
            return "met"
        return "missed" if figure.high <= self.above or figure.low >= self.below else "not shown"

    def words(self, fmt: str) -> str:
        """The bounds as text. fmt: the figure's format; one that ends in % writes percents."""
        bounds = (("above", self.above), ("below", self.below))
        percent = fmt.endswith("%")
        told = [f"{name} {100 * x:g} %" if percent else f"{name} {x:g}" for name, x in bounds if math.isfinite(x)]
        return " and ".join(told)


UNDEFINED = Interval(math.nan, math.nan, math.nan)
"""The interval of a figure without cases."""


class EvaluationError(WamkitError, ValueError):
    """Values or images cannot be scored or shown: a wrong shape, dtype or range, or nothing to score."""
