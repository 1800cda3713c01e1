"""The one contract of every World Action Model: named losses to train it, five queries to ask it.

A family declares what it is (`taxonomy`) and what it can be asked (`queries`), builds its networks from a configuration
and a `Spec`, and implements two methods. It holds no run-time state: random generators and caches are passed in.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.nn.attention_mask import Segment
from wamkit.nn.autoencoders.base import FutureCodec
from wamkit.nn.backbones.base import Backbone
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.options import check_sizes
from wamkit.registry import Registry
from wamkit.types import (
    Answer,
    Batch,
    KVMemory,
    Observation,
    ObservationError,
    Query,
    Sample,
    Spec,
    UnsupportedQuery,
    WamkitError,
)


@dataclass(frozen=True)
class Taxonomy:
    """A family's place in the survey arXiv:2605.12090, as data."""

    leaf: str
    modality: str  # what the future is made of
    conditioning: str  # how imagination and action meet
    decoder: str  # how actions come out
    gradient: str  # joint, detached, EMA target, ...


@dataclass(frozen=True)
class Stage:
    """One phase of training: the share of all steps that it takes, which parameters (by name prefix) learn in it, and
    how fast, as a multiple of the trainer's learning rate."""

    name: str
    share: float
    prefixes: tuple[str, ...]
    lr: float = 1.0


class Robot(Protocol):
    """What tells a robot's own numbers from those of a model that knows several (`data.embodiment.Embodiment`)."""

    name: str

    def observation(self, obs: Observation) -> Observation: ...

    def to_model_views(self, pictures: np.ndarray) -> np.ndarray: ...

    def to_robot_views(self, pictures: np.ndarray) -> np.ndarray: ...

    def encode_action(self, action: np.ndarray, state: np.ndarray) -> np.ndarray: ...

    def decode_action(self, unified: np.ndarray, state: np.ndarray) -> np.ndarray: ...

    def has_action(self) -> np.ndarray: ...

    def has_view(self) -> np.ndarray: ...


class Family(nn.Module, ABC):
    """Base of every family. Subclasses are final: no family subclasses another."""

    name: ClassVar[str]
    taxonomy: ClassVar[Taxonomy]
    queries: ClassVar[frozenset[Query]]
    deterministic: ClassVar[frozenset[Query]] = frozenset()
    """Queries that answer with one best guess, whatever the seed."""
    needs_point_cloud: ClassVar[bool] = False
    """Whether it needs the scene points of a depth camera: the spec then has them, and data without them are refused."""
    keeps_memory: bool = False
    """Whether what it has read of a moment (`Sample.memory`) may stand for it in later queries."""
    robot: Robot | None = None
    """Whose numbers `sample` is given and answers in; None: those that the model learned from."""
    Config: ClassVar[type]
    context: nn.Module
    """The encoder of observations."""

    def __init__(self, config: Any, spec: Spec, normalizer: Normalizer):
        super().__init__()
        check_sizes(config, spec)
        self.config, self.spec, self.normalizer = config, spec, normalizer

    @property
    def backbone(self) -> Backbone | None:
        """The main backbone: the first one that the family builds, unless it says otherwise."""
        return next((m for m in self.children() if isinstance(m, Backbone)), None)

    def blocks(self) -> list[nn.Module]:
        """All blocks of all backbones: the units of sharding, activation checkpointing and compilation.

        Their matrices are those that the optimizer Muon orthogonalises, beside the kernels of convolutions.
        """
        return [block for m in self.modules() if isinstance(m, Backbone) for block in m.layers()]

    @property
    def codec(self) -> FutureCodec | None:
        """The codec of future frames, or None for a family that imagines no images."""
        return next((m for m in self.children() if isinstance(m, FutureCodec)), None)

    def stages(self) -> tuple[Stage, ...]:
        """The phases of training, in order; shares sum to 1. One phase over all parameters unless overridden."""
        return (Stage("main", 1.0, ("",)),)

    @torch.no_grad()
    def features(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        """What the losses of `stage` read of a window that the stage's training cannot change: latents of a frozen codec.

        Named tensors with one row a window. The trainer computes them once for all windows, where that is less work, and
        hands them back in `batch.features`; `forward` computes them itself where they are missing. By default the
        targets of `codec`, once the stage of that name has trained it.
        """
        return {} if self.codec is None or stage == "codec" else self.codec.features(batch)

    @abstractmethod
    def attention_layout(self) -> tuple[Sequence[Segment], Bool[Tensor, "S S"]]:
        """Who sees whom in one training sequence: its segments, and a table, true where a row may look at a column.

        It is what training masks with (`nn.streams.expand`), not a description of it. `wamkit show` draws it.
        """

    def after_step(self) -> None:  # house: a hook; most families follow nothing
        """Called after every optimisation step: moves what follows the learned weights (EMA targets). Nothing by default."""

    def diagnostics(self, batch: Batch, stage: str) -> dict[str, float]:
        """Figures of a training batch that warn of silent failure (a collapsed target, unused codes), for the log."""
        return {}

    @abstractmethod
    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Float[Tensor, " B"]]:
        """Named losses, one value a row, in raw units of the loss; a row that a loss does not concern holds 0.

        The trainer sums them with the weights that the recipe gives by name. All randomness comes from `generator`.
        """

    @abstractmethod
    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> Answer | tuple[Tensor | None, Tensor | None]:
        """Answers `query` for every row: (actions (B, A, a) in robot units or None, future uint8 (B, F, V, 3, H, W) or None),
        and from families that imagine scene points or remember what they read those too, as an `Answer`.

        Given actions or futures are in `batch`; fields that the query does not give hold zeros and must not be read.
        Row i draws its noise from generators[i] alone, so a row's answer does not depend on its neighbours.
        """

    def default_steps(self, query: Query) -> int:
        """Denoising steps of `query` where the caller names none: the configuration's `denoising_steps`."""
        return self.config.denoising_steps

    def denoises(self, query: Query) -> bool:
        """Whether an answer to `query` takes denoising steps, so that `steps` changes it."""
        return query not in self.deterministic

    @torch.inference_mode()
    def reconstruct(self, batch: Batch) -> Tensor | None:
        """What the family's own codec makes of the true futures, uint8 (B, F, V, 3, H, W): the ceiling of its pictures.

        None for families that imagine no images, which have no `codec`.
        """
        codec = self.codec
        if codec is None:
            return None
        if self.robot is None:
            return codec.decode(codec.encode(batch), batch.obs)
        see = lambda x: torch.from_numpy(self.robot.to_model_views(x.cpu().numpy())).to(x.device)  # noqa: E731
        batch = dataclasses.replace(batch, obs=see(batch.obs), future=see(batch.future))
        return torch.from_numpy(self.robot.to_robot_views(codec.decode(codec.encode(batch), batch.obs).cpu().numpy()))

    @torch.inference_mode()
    def sample(
        self,
        obs: Observation | Sequence[Observation],
        query: Query | str = Query.JOINT,
        *,
        seed: int | Sequence[int] = 0,
        actions: np.ndarray | None = None,
        future: np.ndarray | None = None,
        steps: int | None = None,
    ) -> Sample:
        """Asks one of the five queries about one observation or several.

        obs: an Observation, or B of them.            query: 'policy', 'video', 'forward', 'inverse' or 'joint'.
        actions: (A, a) or (B, A, a) in robot units, for `forward`.   future: uint8 (F, V, 3, H, W) or (B, ...), for `inverse`.
        seed: one for all rows (row i draws from (seed, i)), or one a row. Same seed, same sample.
        steps: denoising steps; the configuration's default if None.
        Raises UnsupportedQuery, or ObservationError naming the field, what was expected and what came.
        """
        query = Query(query)
        if query not in self.queries:
            raise UnsupportedQuery(unsupported(self.name, query))
        if not isinstance(obs, (Observation, Sequence)):
            raise ObservationError(f"expected a wamkit.Observation or a list of them, got {type(obs).__name__}")
        steps = self.default_steps(query) if steps is None else steps
        if not isinstance(steps, int) or steps < 1:
            raise ObservationError(f"steps = {steps!r}: must be a whole number of denoising steps, at least 1")
        rows = [obs] if isinstance(obs, Observation) else list(obs)
        given = rows
        if self.robot is not None:
            rows, actions, future = _as_model(self.robot, rows, actions, future)
        batch = query_batch(rows, query, self.spec, actions, future)
        if self.robot is not None:
            batch.action_dim_valid = torch.from_numpy(self.robot.has_action()).repeat(len(rows), 1)
            batch.view_valid = torch.from_numpy(self.robot.has_view()).repeat(len(rows), 1)
        batch.memory = self._memory(rows)
        self._check_units(batch, query)
        generators = [torch.Generator().manual_seed(s) for s in row_seeds(seed, len(rows))]
        a, f, p, m = Answer(*self.generate(batch.to(next(self.parameters()).device), query, generators, steps))
        numbers = [None if x is None else x.float().cpu().numpy() for x in (a, p)]
        if self.robot is not None and numbers[0] is not None:
            numbers[0] = self.robot.decode_action(numbers[0], np.stack([r.proprio for r in given]))
        memory = () if m is None else tuple(KVMemory(keys, self) for keys in m)
        pictures = None if f is None else f.cpu().numpy()
        if self.robot is not None and pictures is not None:
            pictures = self.robot.to_robot_views(pictures)
        return Sample(query, numbers[0], pictures, numbers[1], memory)

    def _memory(self, rows: Sequence[Observation]) -> Tensor | None:
        """The keys of all earlier moments of `rows`, reading those that are not remembered; None if no moment is."""
        given = [m for row in rows for m in row.past if isinstance(m, KVMemory)]
        if not given:
            return None
        if not all(m.model is self for m in given):
            raise ObservationError(
                "past: holds the memory of another model, or of this one before it was loaded again; give observations instead"
            )
        earlier = [
            [m if isinstance(m, KVMemory) else self.encode_history(m) if m else None for m in row.past] for row in rows
        ]
        nothing = torch.zeros_like(given[0].keys)
        return torch.stack([torch.stack([m.keys if m else nothing for m in row]) for row in earlier])

    def encode_history(self, obs: Observation) -> KVMemory:
        """Reads one observation, to stand for it in the `past` of later ones. Raises WamkitError if the model does not remember."""
        if not self.keeps_memory:
            raise WamkitError(
                f"this '{self.name}' does not remember what it read: it was not configured to (chunk_causal)"
            )
        alone = dataclasses.replace(obs, past=(None,) * len(self.spec.past_offsets))
        return self.sample(alone, Query.POLICY, steps=1).memory[0]

    def _check_units(self, batch: Batch, query: Query) -> None:
        """Numbers far outside all that training saw are not this robot's, or not in its units; nothing sensible follows."""
        given = [("proprio", batch.proprio), ("proprio", batch.past_proprio)]
        for key, values in given + ([("action", batch.action)] if query is Query.FORWARD else []):
            far = self.normalizer.encode(key, values.to(next(self.parameters()).device)).abs()
            if far.numel() and not far.max() <= FAR:
                raise ObservationError(
                    f"{key}: {values.flatten()[far.argmax()].item():.3g} lies {far.max().item():.0e} deviations from what training "
                    "saw; are these the robot's units, in the order of training?"
                )


def _as_model(
    robot: Robot, rows: list[Observation], actions: np.ndarray | None, future: np.ndarray | None
) -> tuple[list[Observation], np.ndarray | None, np.ndarray | None]:
    """A robot's observations, and actions or futures that it may have been given, as the model learned from them."""
    if actions is not None:
        chunks = np.asarray(actions, np.float32)
        chunks = chunks[None] if chunks.ndim == 2 else chunks
        actions = robot.encode_action(chunks, np.stack([r.proprio for r in rows]))
    see = lambda o: robot.observation(o) if isinstance(o, Observation) else o  # noqa: E731
    rows = [dataclasses.replace(see(r), past=tuple(see(p) for p in r.past)) for r in rows]
    return rows, actions, None if future is None else robot.to_model_views(np.asarray(future))


FAR = 1e5
"""Deviations from the training mean beyond which a number is taken for a mistake."""

FAMILIES: Registry[type[Family]] = Registry("family", "wamkit.families")


def unsupported(name: str, query: Query) -> str:
    """The message for a query that the family `name` does not model: says which families do."""
    able = sorted(n for n in FAMILIES.names() if query in FAMILIES.get(n).queries)
    if name in able:
        return f"this '{name}' was configured so that it cannot answer '{query}' (its program keeps one stream from the other)"
    return f"family '{name}' does not model the query '{query}'; families that do: {', '.join(able) or 'none'}"


def row_seeds(seed: int | Sequence[int], rows: int) -> list[int]:
    """One seed a row, from one for all or one each. Raises ObservationError for the wrong number or kind."""
    given = np.asarray(seed)
    if given.dtype.kind not in "iu" or given.ndim > 1 or (given < 0).any():
        raise ObservationError(f"seed = {seed!r}: must be a whole number from 0 on, or one for each row")
    if given.ndim and len(given) != rows:
        raise ObservationError(f"{rows} observations need {rows} seeds (or one), got {len(given)}")
    return given.tolist() if given.ndim else [(int(given) + 1_000_003 * i) % 2**63 for i in range(rows)]


def query_batch(
    rows: Sequence[Observation], query: Query, spec: Spec, actions: np.ndarray | None, future: np.ndarray | None
) -> Batch:
    """Checks the inputs of a query against `spec` and stacks them to a Batch of B rows."""
    B, F_ = len(rows), len(spec.frame_offsets)
    if B == 0:
        raise ObservationError("no observation was given")
    for i, row in enumerate(rows):
        check_observation(row, spec, f"observation {i}")
        check_points(row, spec, f"observation {i}")
        if len(row.past) != len(spec.past_offsets):
            raise ObservationError(
                f"observation {i}: past: the model looks back at the steps {spec.past_offsets}, so expected "
                f"{len(spec.past_offsets)} observations (None before the episode began), got {len(row.past)}"
            )
        for offset, earlier in zip(spec.past_offsets, row.past, strict=True):
            if earlier is not None and not isinstance(earlier, KVMemory):
                check_observation(earlier, spec, f"observation {i}, {-offset} steps ago")
    picture = (spec.views, 3, spec.height, spec.width)
    a = _given("actions", actions, query is Query.FORWARD, (B, spec.chunk, spec.action_dim), np.floating, query)
    f = _given("future", future, query is Query.INVERSE, (B, F_, *picture), np.uint8, query)
    action = torch.from_numpy(a.astype(np.float32))
    # Where there was nothing yet, or it is remembered, the present stands in, and nobody reads it.
    past = [[p if isinstance(p, Observation) else row for p in row.past] for row in rows]
    seen = lambda name, shape: np.array([[getattr(p, name) for p in ps] for ps in past]).reshape(B, -1, *shape)  # noqa: E731
    return Batch(
        obs=torch.from_numpy(np.stack([r.images for r in rows if r.images is not None])),
        future=torch.from_numpy(f.astype(np.uint8)),
        frame_valid=torch.ones(B, F_, dtype=torch.bool),
        proprio=torch.from_numpy(np.stack([r.proprio for r in rows])),
        action=action,
        action_expert=action,
        action_valid=torch.ones(B, spec.chunk, dtype=torch.bool),
        past=torch.from_numpy(seen("images", picture).astype(np.uint8)),
        past_proprio=torch.from_numpy(seen("proprio", (spec.proprio_dim,)).astype(np.float32)),
        past_valid=torch.tensor([[p is not None for p in row.past] for row in rows], dtype=torch.bool),
        text=[r.text for r in rows],
        has_action=torch.ones(B, dtype=torch.bool),
        is_demonstration=torch.ones(B, dtype=torch.bool),
        point_cloud=torch.from_numpy(np.stack([r.point_cloud for r in rows if r.point_cloud is not None]))
        if spec.point_grid
        else None,
    )


def _given(
    name: str, value: np.ndarray | None, wanted: bool, shape: tuple[int, ...], kind: type, query: Query
) -> np.ndarray:
    if not wanted:
        if value is not None:
            raise ObservationError(f"the query '{query}' takes no {name}")
        return np.zeros(shape, kind if kind is np.uint8 else np.float32)
    if value is None:
        raise ObservationError(f"the query '{query}' needs {name} of shape {shape[1:]} or {shape}")
    value = np.asarray(value)
    if np.issubdtype(value.dtype, np.floating):
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
            value = value.astype(np.float32)
    value = value[None] if value.ndim == len(shape) - 1 else value
    if value.shape != shape or not np.issubdtype(value.dtype, kind):
        raise ObservationError(f"{name}: expected {kind.__name__} {shape}, got {value.dtype} {value.shape}")
    if kind is np.floating and not np.isfinite(value).all():
        raise ObservationError(f"{name}: not all values are finite")
    return value


def check_points(obs: Observation, spec: Spec, where: str) -> None:
    """Raises ObservationError unless `obs` has the scene points that a model of this `spec` looks at, if it does."""
    if not spec.point_grid:
        return
    shape = (spec.point_grid**2, 4)
    if obs.point_cloud is None:
        raise ObservationError(
            f"{where}: points are missing: this model looks at the {shape[0]} scene points of a depth camera, float32 {shape} "
            f"(of MetaWorld: make_env('metaworld', point_grid={spec.point_grid}, ...))"
        )
    if obs.point_cloud.dtype != np.float32 or obs.point_cloud.shape != shape or not np.isfinite(obs.point_cloud).all():
        raise ObservationError(
            f"{where}: points: expected finite float32 {shape} as in training, got {obs.point_cloud.dtype} {obs.point_cloud.shape}"
        )


def check_observation(obs: Observation, spec: Spec, where: str = "observation") -> None:
    """Raises ObservationError, naming the field, if `obs` is not what a model of this `spec` was trained on."""
    if not isinstance(obs, Observation):
        raise ObservationError(f"{where}: expected wamkit.Observation, got {type(obs).__name__}")
    if obs.images is None:
        raise ObservationError(f"{where}: images are missing (the environment was told not to render)")
    wants = (
        ("images", obs.images, np.uint8, (spec.views, 3, spec.height, spec.width)),
        ("proprio", obs.proprio, np.float32, (spec.proprio_dim,)),
    )
    for field, value, dtype, shape in wants:
        if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
            got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            raise ObservationError(
                f"{where}: {field}: expected {np.dtype(dtype).name} {shape} as in training, got {got}"
            )
    if not np.isfinite(obs.proprio).all():
        raise ObservationError(f"{where}: proprio: not all values are finite: {obs.proprio}")
    if not isinstance(obs.text, str) or not obs.text.strip():
        raise ObservationError(f"{where}: text: expected an instruction, got {obs.text!r}")
