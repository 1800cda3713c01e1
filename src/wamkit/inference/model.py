"""A trained model that answers queries: the family's networks behind checks, units and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from wamkit.data.embodiment import Embodiment
from wamkit.data.image_transform import ImageTransform
from wamkit.families.base import Family, Taxonomy
from wamkit.inference.checks import fitted, fitted_images, query_batch, row_seeds, unsupported
from wamkit.inference.realtime import Ahead, begun, checked, padded, with_ahead
from wamkit.nn.attention_mask import TEXT
from wamkit.nn.tokens import check_finite
from wamkit.nn.video_tokens import VideoContext
from wamkit.runs.run import Run
from wamkit.types import (
    Answer,
    Batch,
    Embedding,
    KVMemory,
    NotFinite,
    Observation,
    ObservationError,
    Query,
    Sample,
    Spec,
    UnsupportedQuery,
    WamkitError,
)

MAX_DEVIATIONS = 1e5
"""Deviations from the training mean beyond which an input is taken for a mistake."""
UNREAD = "unread"
"""The instruction in an observation of which a family reads the images alone."""


@final
class Model:
    """A family that is asked queries, in the units of one embodiment.

    family: the networks. They are shared, not copied.
    embodiment: for a family trained on a mixture, the embodiment whose observations and actions go in and out.
        None: observations and actions are those that the family was trained on.
    optional_views: views, among `spec.cameras`, that an observation may lack, because training data lacked them too.
    action_bounds: (lowest, highest) value of each action dimension, in robot units; empty where unknown. Actions that
        the model gives are clipped to it, and those that it is given are taken as they are.
    image: resizes images of observations and futures to those of `spec`, as training did; None to take images of that
        size alone.
    prefix: most first actions that training gave (`train.prefix`), for answers that begin with decided actions.
    """

    def __init__(
        self,
        family: Family,
        embodiment: Embodiment | None = None,
        optional_views: Sequence[str] = (),
        *,
        action_bounds: Sequence[tuple[float, float]] = (),
        image: ImageTransform | None = None,
        prefix: int = 0,
    ):
        if not isinstance(family, Family):
            raise WamkitError(f"a model wraps a family, got {type(family).__name__}")
        self.family, self.embodiment, self.optional_views = family, embodiment, tuple(optional_views)
        self.action_bounds, self.image, self.prefix = tuple(action_bounds), image, prefix

    @property
    def name(self) -> str:
        """The family's registered name."""
        return self.family.name

    @property
    def taxonomy(self) -> Taxonomy:
        """The family's place in the survey."""
        return self.family.taxonomy

    @property
    def queries(self) -> frozenset[Query]:
        """Queries that the model answers."""
        return self.family.queries

    @property
    def spec(self) -> Spec:
        """Shapes and clocks of the family. For a mixture these are the unified ones, not the embodiment's own."""
        return self.family.spec

    @property
    def config(self) -> Any:
        """The family's configuration."""
        return self.family.config

    def default_steps(self, query: Query) -> int:
        """Denoising steps of `query` unless the caller names a number."""
        return self.family.default_steps(query)

    def denoises(self, query: Query) -> bool:
        """True if the answer to `query` takes denoising steps."""
        return self.family.denoises(query)

    def sample(
        self,
        obs: Observation | Sequence[Observation],
        query: Query | str = Query.JOINT,
        *,
        seed: int | Sequence[int] = 0,
        actions: np.ndarray | None = None,
        future: np.ndarray | None = None,
        steps: int | None = None,
        ahead: Ahead | Sequence[Ahead | None] | None = None,
    ) -> Sample:
        """Answers one of the five queries for one observation or several.

        Images may have any size if the run knows its image transform (`image`): they are resized as in training. Their
        views have one size, or come as a tuple of one array (3, h, w) a view.

        One observation gives one answer: actions (A, a), frames (F, V, 3, H, W). A list of B gives answers with a first
        axis B, also for B = 1. Actions are clipped to `action_bounds`, where these are known.

        obs: an Observation, or a list of B.
        query: 'policy', 'video', 'forward', 'inverse' or 'joint'.
        seed: one for all rows (row i draws from (seed, i)), or one a row. The same seed gives the same sample.
        actions: float (A, a) or (B, A, a) in robot units, for `forward`.
        future: uint8 (F, V, 3, H, W) or (B, F, V, 3, H, W), for `inverse`.
        steps: denoising steps; None for the configuration's default.
        ahead: actions that the robot takes meanwhile, for `policy` and `joint`: the answer begins with those that are
            decided, to the bit, and goes on from there (`inference.realtime`). One for one observation, or one a row.

        Raises UnsupportedQuery for what the family does not model, ObservationError, which names the field,
        what was expected and what came, and NotFinite, which names the query and the field, for an answer with NaN or
        infinities.
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
        left = self._left(ahead, query, rows)
        # Guidance needs gradients, which inference mode rules out.
        with torch.inference_mode(not left), torch.no_grad():
            batch, begins = self._batch(rows, query, actions, future), list[int]()
            if left:
                batch.action = torch.from_numpy(self._chunks(padded(left, *self._chunk_shape), rows))
                self._check_units("action", batch.action)
                batch, begins = with_ahead(batch, left, self.family, self.prefix)
            generators = [torch.Generator().manual_seed(s) for s in row_seeds(seed, len(rows))]
            try:
                answer = Answer(*self.family.generate(batch.to(self._device), query, generators, steps))
                sample = self._sample(answer, query, rows, batch)
            except NotFinite as error:
                raise NotFinite(f"the query '{query}' of this '{self.name}': {error}") from error
        if left and sample.actions is not None:
            sample = replace(sample, actions=begun(sample.actions, left, begins))
        return sample.row(0) if isinstance(obs, Observation) else sample

    def usual(self) -> tuple[Float32[np.ndarray, " s"], Float32[np.ndarray, "A a"]]:
        """The middle of what training saw, in the robot's units: a state, and a chunk of one action over and over.

        For queries whose answers do not matter: zeros may lie far from all that a robot does.
        """
        spec, middle = self.spec, self.family.normalizer.decode
        sizes = {"proprio": spec.proprio_dim, "action": spec.action_dim}
        found = {
            k: middle(k, torch.zeros(n, device=self._device)).cpu().numpy() if n else np.zeros(0, np.float32)
            for k, n in sizes.items()
        }
        state, chunk = found["proprio"], np.tile(found["action"], (spec.chunk, 1))
        if self.embodiment is None:
            return state, chunk
        state = self.embodiment.decode_state(state)
        return state, self.embodiment.decode_action(chunk[None], state[None])[0]

    @torch.inference_mode()
    def embed(self, obs: Observation | Sequence[Observation]) -> Embedding:
        """Features of one observation or several: what the model makes of it before it answers.

        Each token is the input of the last block of the family's main backbone at a token of the observation. Two
        families differ: `shared_rep` gives its representation of the future, one token a frame and cell, and `unified`
        the encoder's tokens where `model.conditioning` keeps them out of the backbone. Numbers are as the network has
        them, not normalised. They do not depend on a seed, and no gradient flows.

        Raises ObservationError and NotFinite as `sample`.
        """
        if not isinstance(obs, (Observation, Sequence)):
            raise ObservationError(f"expected a wamkit.Observation or a list of them, got {type(obs).__name__}")
        rows = [obs] if isinstance(obs, Observation) else list(obs)
        parts = self.family.embed(self._batch(rows, Query.POLICY, None, None).to(self._device))
        if isinstance(self.family.context, VideoContext):  # whose text passes through no block
            parts = [p for p in parts if p.kind != TEXT]
        tokens = torch.cat([p.values for p in parts], 1).float()
        check_finite(tokens, "features")
        kinds = tuple(p.kind for p in parts for _ in range(len(p)))
        vector, every = tokens.mean(1).cpu().numpy(), tokens.cpu().numpy()
        if isinstance(obs, Observation):
            vector, every = vector[0], every[0]
        return Embedding(vector, every, kinds)

    @torch.inference_mode()
    def read_state(
        self, images: UInt8[np.ndarray, "B V 3 H W"], view_valid: Bool[np.ndarray, "B V"] | None = None
    ) -> Float32[np.ndarray, "B s"]:
        """The robot's state, read off its images, in its own units: for video, which recorded none.

        images: of any size, as those of `sample`.   view_valid: the views that were seen; None for all.

        Raises WamkitError for a family that is given the state, and ObservationError and NotFinite as `sample`.
        """
        robot, spec = self.embodiment, self.spec
        if self.image is not None:
            images = fitted_images(images, self.image, "images")
        if robot is not None:
            seen = np.ones(images.shape[:2], bool) if view_valid is None else view_valid
            images, view_valid = robot.to_model_views(images), robot.to_model_mask(seen)
        before, unread = (None,) * len(spec.past_offsets), np.zeros(spec.proprio_dim, np.float32)
        seen_by = [None] * len(images) if view_valid is None else view_valid
        rows = [Observation(x, unread, UNREAD, before, None, v) for x, v in zip(images, seen_by, strict=True)]
        batch = query_batch(rows, Query.POLICY, spec, None, None)
        state = self.family.read_state(batch.to(self._device)).float().cpu()
        check_finite(state, "state")
        return state.numpy() if robot is None else robot.decode_state(state.numpy())

    def encode_history(self, obs: Observation) -> KVMemory:
        """Encodes one observation, so that the result can stand for it in the `past` of later ones.

        Raises WamkitError for a model that keeps no memory.
        """
        if not self.family.keeps_memory:
            raise WamkitError(f"this '{self.name}' keeps no memory: it was not configured to (chunk_causal)")
        alone = replace(obs, past=(None,) * len(self.spec.past_offsets))
        return self.sample(alone, Query.POLICY, steps=1).memory[0]

    @torch.inference_mode()
    def reconstruct(self, batch: Batch) -> Tensor | None:
        """The true futures of `batch` after the family's own codec, uint8 (B, F, V, 3, H, W).

        It is the ceiling of the quality of imagined images. None for families that imagine no images.
        """
        codec = self.family.codec
        if codec is None:
            return None
        if self.embodiment is None:
            return codec.decode(codec.encode(batch), batch.obs)
        views = self.embodiment.to_model_views
        obs, future = (torch.from_numpy(views(x.cpu().numpy())).to(x.device) for x in (batch.obs, batch.future))
        seen = None if batch.view_valid is None else batch.view_valid.cpu().numpy()
        mask = None if seen is None else torch.from_numpy(self.embodiment.to_model_mask(seen)).to(obs.device)
        batch = replace(batch, obs=obs, future=future, view_valid=mask)
        decoded = codec.decode(codec.encode(batch), batch.obs).cpu().numpy()
        return torch.from_numpy(self.embodiment.to_robot_views(decoded))

    @property
    def _device(self) -> torch.device:
        return next(self.family.parameters()).device

    def _batch(
        self, rows: list[Observation], query: Query, actions: np.ndarray | None, future: np.ndarray | None
    ) -> Batch:
        """The inputs of a query, checked, in the units and views of the family."""
        robot, image = self.embodiment, self.image
        if image is not None:
            rows = [fitted(row, image, f"observation {i}") for i, row in enumerate(rows)]
            future = None if future is None else fitted_images(future, image, "future")
        if robot is None:
            batch = query_batch(rows, query, self.spec, actions, future)
        else:
            if actions is not None:
                chunks = np.asarray(actions, np.float32)
                actions = self._chunks(chunks[None] if chunks.ndim == 2 else chunks, rows)
            future = None if future is None else robot.to_model_views(np.asarray(future))
            rows = [_unified(r, robot) for r in rows]
            batch = query_batch(rows, query, self.spec, actions, future)
            batch.action_dim_valid = torch.from_numpy(robot.has_action()).repeat(len(rows), 1)
            seen = torch.from_numpy(robot.has_view()).repeat(len(rows), 1)
            batch.view_valid = seen if batch.view_valid is None else seen & batch.view_valid
        self._check_views(batch)
        batch.memory = self._memory(rows)
        self._check_units("proprio", batch.proprio)
        self._check_units("proprio", batch.past_proprio)
        if query is Query.FORWARD:
            self._check_units("action", batch.action)
        return batch

    @property
    def _chunk_shape(self) -> tuple[int, int]:
        """Steps and dimensions of a chunk of the robot's actions."""
        return self.spec.chunk, self.spec.action_dim if self.embodiment is None else self.embodiment.own_action_size

    def _chunks(self, actions: np.ndarray, rows: Sequence[Observation]) -> np.ndarray:
        """Chunks (B, A, a) of the robot's actions in the units of the family."""
        if self.embodiment is None:
            return actions
        return self.embodiment.encode_action(actions, np.stack([r.proprio for r in rows]))

    def _left(
        self, ahead: Ahead | Sequence[Ahead | None] | None, query: Query, rows: Sequence[Observation]
    ) -> list[Ahead | None]:
        """Actions that are left of the chunk before, a row each; nothing where no row has any."""
        given = [ahead] if ahead is None or isinstance(ahead, Ahead) else list(ahead)
        if not any(g is not None for g in given):
            return []
        if not query.wants_action or query is Query.INVERSE:
            raise ObservationError(f"the query '{query}' takes no actions ahead: 'policy' and 'joint' do")
        if len(given) != len(rows):
            raise ObservationError(f"ahead: {len(rows)} observations need as many, or None each; got {len(given)}")
        return [None if g is None else checked(g, *self._chunk_shape) for g in given]

    def _sample(self, answer: Answer, query: Query, rows: Sequence[Observation], batch: Batch) -> Sample:
        """The family's answer as arrays, in the units and views of the embodiment. Raises NotFinite, naming the field.

        Future frames are 8-bit integers by now, and were checked before they became that (`nn.tokens.uncanvas`).
        """
        actions, points = (None if x is None else x.float().cpu().numpy() for x in (answer.actions, answer.point_cloud))
        future = None if answer.future is None else answer.future.cpu().numpy()
        if self.embodiment is not None and actions is not None:
            actions = self.embodiment.decode_action(actions, np.stack([r.proprio for r in rows]))
        if future is not None and batch.view_valid is not None:
            future[np.broadcast_to(~batch.view_valid.numpy()[:, None], future.shape[:3])] = 0
        if self.embodiment is not None and future is not None:
            future = self.embodiment.to_robot_views(future)
        for name, values in (("actions", actions), ("scene points", points), ("memory", answer.memory)):
            if values is not None:
                check_finite(torch.as_tensor(values), name)
        if actions is not None and self.action_bounds:
            actions = np.clip(actions, *np.array(self.action_bounds, np.float32).T)
        memory = () if answer.memory is None else tuple(KVMemory(keys, self.family) for keys in answer.memory)
        return Sample(query, actions, future, points, memory)

    def _memory(self, rows: Sequence[Observation]) -> Tensor | None:
        """Keys of all earlier moments of `rows`, encoding those that are not in memory; None if no moment is."""
        given = [m for row in rows for m in row.past if isinstance(m, KVMemory)]
        if not given:
            return None
        if not all(m.model is self.family for m in given):
            raise ObservationError(
                "past: holds the memory of another model, or of this one before it was loaded again; "
                "give observations instead"
            )
        family = Model(self.family, optional_views=self.spec.cameras)  # `rows` are in the family's own units
        earlier = [
            [m if isinstance(m, KVMemory) else family.encode_history(m) if m else None for m in row.past]
            for row in rows
        ]
        nothing = torch.zeros_like(given[0].keys)
        return torch.stack([torch.stack([m.keys if m else nothing for m in row]) for row in earlier])

    def _check_views(self, batch: Batch) -> None:
        """Raises ObservationError for a view that an observation lacks, but that all training data had."""
        if batch.view_valid is None:
            return
        has = np.ones(self.spec.views, bool) if self.embodiment is None else self.embodiment.has_view()
        for view in np.flatnonzero(has & ~batch.view_valid.all(0).numpy()):
            if (camera := self.spec.cameras[view]) not in self.optional_views:
                raise ObservationError(
                    f"view_valid: there is no image of {camera}, which all training data had; give it, "
                    "or train with `--train.drop-view 0.2`, which teaches a model to do without"
                )

    def _check_units(self, key: str, values: Tensor) -> None:
        """Raises ObservationError for values so far from those of training that their units or order must differ."""
        far = self.family.normalizer.deviations(key, values.to(self._device))
        if far.numel() and not far.max() <= MAX_DEVIATIONS:
            raise ObservationError(
                f"{key}: {values.flatten()[far.argmax()].item():.3g} lies {far.max().item():.0e} deviations from "
                "what training saw; are these the robot's units, in the order of training?"
            )


def _unified(obs: Observation, robot: Embodiment) -> Observation:
    """A robot's observation and its past as the family was trained on them."""
    convert = lambda o: robot.observation(o) if isinstance(o, Observation) else o  # noqa: E731
    return replace(convert(obs), past=tuple(convert(p) for p in obs.past))


def load(run: Run | str | Path, device: str = "cpu", embodiment: str = "") -> Model:
    """The model of a run, or of a run folder, ready to answer queries: averaged weights in evaluation mode.

    run: also the file of `wamkit export`, or a run on the Hub: "USER/NAME" or "USER/NAME@REVISION", where a folder of
        that name on this machine wins, or "hf://USER/NAME", which always is on the Hub.
    embodiment: for a run trained on a mixture, the data set whose observations and actions go in and out. By default
        the one that an environment exists for; where there is none, observations and actions are the unified ones.

    Raises CheckpointError naming the file when anything is missing or damaged, and WamkitError if there is no run, if
    the device cannot be used, or if the run knows no such embodiment.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    acting = run.embodiment(embodiment)
    bounds = run.action_bounds(embodiment)
    return Model(
        run.family(device),
        acting,
        run.optional_views,
        action_bounds=bounds,
        image=run.image,
        prefix=run.config.train.prefix,
    )


def opened(run: Run, embodiment: str = "") -> Model:
    """`load` on the CPU, kept until another model is asked for: a process that asks again loads nothing.

    Worker processes load the run that a job names with this.
    """
    return _opened(run, embodiment)


@lru_cache(maxsize=1)
def _opened(run: Run, embodiment: str) -> Model:
    return load(run, embodiment=embodiment)
