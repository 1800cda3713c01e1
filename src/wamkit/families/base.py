"""The contract of every World Action Model: named losses to train it, and answers to five queries.

A family declares its place in the taxonomy and the queries that it answers, builds its networks from a configuration
and a `Spec`, and implements `forward`, `generate` and `attention_layout`. It holds no run-time state: random generators
and caches are passed in. `wamkit.inference.Model` puts checks, units and memory in front of it.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.nn import ActionChunk, Backbone, FutureCodec, Normalizer, SequenceBackbone, Tokens
from wamkit.nn.attention_mask import Segment, expand
from wamkit.registry import Registry
from wamkit.types import Answer, Batch, Query, Spec, WamkitError


@dataclass(frozen=True)
class Taxonomy:
    """A family's place in the survey arXiv:2605.12090, as data.

    leaf: the leaf of the survey's tree.
    modality: what the future is made of.
    conditioning: how imagination and action meet.
    decoder: how actions are decoded.
    gradient: joint, detached, EMA target, ...
    """

    leaf: str
    modality: str
    conditioning: str
    decoder: str
    gradient: str


@dataclass(frozen=True)
class Stage:
    """One phase of training.

    share: of all steps, in (0, 1].
    prefixes: parameters whose names begin with one of these learn in it.
    lr: multiple of the trainer's learning rate.
    teaches: queries that its losses need evidence of, at least one of them: data with none are refused. None for all
        that the family answers; an empty set for a stage that learns from images alone.
    """

    name: str
    share: float
    prefixes: tuple[str, ...]
    lr: float = 1.0
    teaches: frozenset[Query] | None = None


class Family(nn.Module, ABC):
    """Base of every family. Subclasses are final: no family subclasses another."""

    name: ClassVar[str]
    taxonomy: ClassVar[Taxonomy]
    queries: ClassVar[frozenset[Query]]
    Config: ClassVar[type]
    context: nn.Module
    """The encoder of observations."""
    deterministic: ClassVar[frozenset[Query]] = frozenset()
    """Queries that are answered with one best guess, whatever the seed."""
    needs_point_cloud: ClassVar[bool] = False
    """True for a family that needs the scene points of a depth camera. Data without them are then refused."""
    images_alone: ClassVar[bool] = False
    """True for a family that looks at images alone: it is asked about video, which has no state and perhaps no text,
    and reads the state off the images (`read_state`)."""
    keeps_memory: bool = False
    """True if `generate` returns memory, which may stand for an observation in later queries (`Sample.memory`)."""
    problems: int = 1
    """Chunks of actions that a row denoises in training, each of which may begin with given ones (`Batch.prefix`)."""

    def __init__(self, config: Any, spec: Spec, normalizer: Normalizer):
        super().__init__()
        self.config, self.spec, self.normalizer = config, spec, normalizer
        self._declared: tuple[tuple[Backbone, ...], FutureCodec | None, ActionChunk | None] = ((), None, None)

    def declare(
        self, *backbones: Backbone, codec: FutureCodec | None = None, denoised: ActionChunk | None = None
    ) -> None:
        """Names the backbones, the main one first, the codec of future frames, and the chunk of actions that a policy
        query denoises, once they are built."""
        self._declared = (backbones, codec, denoised)  # in a tuple, so that their parameters keep one name

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        """The backbones, the main one first."""
        return self._declared[0]

    @property
    def codec(self) -> FutureCodec | None:
        """The codec of future frames, or None for a family that imagines no images."""
        return self._declared[1]

    @property
    def denoised(self) -> ActionChunk | None:
        """The chunk of actions that a policy query denoises, which can begin with actions that are decided already.
        None for a family whose actions come about in another way (regression, codes, geometry)."""
        return self._declared[2]

    @property
    def frozen(self) -> frozenset[str]:
        """Names of parameters that no stage trains: released weights of a backbone that stay as they are.

        They are in no checkpoint, whose run names the model that has them instead.
        """
        kept = {id(p) for backbone in self.backbones for p in backbone.frozen()}
        return frozenset(name for name, p in self.named_parameters() if id(p) in kept)

    def learning(self, stage: Stage) -> frozenset[str]:
        """Names of the parameters that `stage` trains."""
        return frozenset(n for n, _ in self.named_parameters() if n.startswith(stage.prefixes)) - self.frozen

    def __deepcopy__(self, memo: dict[int, Any]) -> Family:
        memo |= {id(p): p for backbone in self.backbones for p in backbone.frozen()}  # shared: they never change
        memo[id(self)] = new = self.__class__.__new__(self.__class__)
        vars(new).update(copy.deepcopy(vars(self), memo))
        return new

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Parameters and buffers by name, without `frozen` ones."""
        state, frozen = super().state_dict(*args, **kwargs), self.frozen
        return {name: x for name, x in state.items() if name not in frozen} if frozen else state

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's, without `frozen` parameters."""
        if not (frozen := self.frozen):
            return super().load_state_dict(state_dict, strict, assign)
        found = super().load_state_dict(state_dict, False, assign)
        missing = [name for name in found.missing_keys if name not in frozen]
        if strict and (missing or found.unexpected_keys):
            raise RuntimeError(f"weights do not fit: {missing} are missing, {found.unexpected_keys} are unknown")
        return found

    def blocks(self) -> list[nn.Module]:
        """All blocks of all backbones: the units of sharding, activation checkpointing and compilation.

        Their matrices are those that the optimizer Muon orthogonalises, beside the kernels of convolutions.
        """
        return [block for backbone in self.backbones for block in backbone.layers()]

    def stages(self) -> tuple[Stage, ...]:
        """Phases of training in order; their shares sum to 1. One phase over all parameters unless overridden."""
        return (Stage("main", 1.0, ("",)),)

    @torch.no_grad()
    def features(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        """Inputs of the losses of `stage` that its training cannot change, by name, one row a window.

        The trainer computes them once for all windows where that saves work, and hands them back in `batch.features`;
        `forward` computes them itself where they are missing. By default they are the targets of `codec`, in all
        stages but the one that trains it.
        """
        return {} if self.codec is None or stage == "codec" else self.codec.features(batch)

    @abstractmethod
    def attention_layout(self) -> tuple[Sequence[Segment], Bool[Tensor, "S S"]]:
        """Segments of one training sequence, and a table that is true where a row may attend to a column.

        Training masks with this table (`nn.attention_mask.expand`); `wamkit show` draws it.
        """

    def attention_mask(self, device: torch.device) -> Bool[Tensor, "L L"]:
        """`attention_layout` token by token."""
        segments, seen_SS = self.attention_layout()
        return expand(seen_SS, segments).to(device)

    def after_step(self) -> None:  # house: a hook; most families follow nothing
        """Updates parameters that follow the learned ones (EMA targets), after every optimisation step."""

    def diagnostics(self, batch: Batch, stage: str) -> dict[str, float]:
        """Figures of a training batch that warn of silent failure (a collapsed target, unused codes), for the log."""
        return {}

    @abstractmethod
    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Float[Tensor, " B"]]:
        """Named losses, one value a row, in raw units of the loss. A row that a loss does not apply to holds 0.

        The trainer sums them with the weights that the recipe gives by name. All randomness comes from `generator`.
        """

    @abstractmethod
    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> Answer | tuple[Tensor | None, Tensor | None]:
        """Answers `query` for every row: (actions, future), or an `Answer` with scene points or memory too.

        Actions are float (B, A, a) in the units of the training data, the future is uint8 (B, F, V, 3, H, W). Either
        is None where the query does not ask for it. Given actions or futures are in `batch`; fields that the query
        does not give hold zeros and must not be read. Row i draws its noise from generators[i] alone, so that a row's
        answer does not depend on its neighbours.
        """

    def read_state(self, batch: Batch) -> Float[Tensor, "B s"]:
        """The robot's state at the present frame, in the units of the training data, read off the images.

        Only families with `images_alone` do that.
        """
        raise WamkitError(f"the family {self.name!r} reads no state off images: it is given the state")

    def embed(self, batch: Batch) -> list[Tokens]:
        """Features of the observations: their tokens as they enter the last block of the main backbone.

        The outputs of that block at these tokens are read by nothing, so no loss trains them. A family overrides this
        where its backbone is not a `SequenceBackbone`, or where its representation of an observation lies elsewhere.
        """
        backbone, context = self.backbones[0], self.context(batch, self.normalizer)
        if not isinstance(backbone, SequenceBackbone):
            raise WamkitError(f"the family {self.name!r} does not define `embed`, so it has no features to give")
        length = sum(map(len, context))
        mask_LL = self.attention_mask(batch.obs.device)[:length, :length]
        return replaced(context, backbone.before_last(context, mask_LL))

    def default_steps(self, query: Query) -> int:
        """Denoising steps of `query` unless the caller names a number: the configuration's `denoising_steps`."""
        return self.config.denoising_steps

    def denoises(self, query: Query) -> bool:
        """True if the answer to `query` takes denoising steps, so that `steps` changes it."""
        return query not in self.deterministic


def codec_stage(family: Family, codec: str = "future.codec") -> tuple[Stage, ...]:
    """The first stage of a family, which trains its codec (parameters `codec`); none for a pretrained codec."""
    c = family.config
    if family.codec is not None and family.codec.pretrained:
        return ()
    return (Stage("codec", c.codec_share, (codec,), c.codec_lr, frozenset()),)


def codec_stages(family: Family, *prefixes: str, codec: str = "future.codec") -> tuple[Stage, ...]:
    """The stages of a family that first trains its codec (parameters `codec`), then the parameters of `prefixes`."""
    first = codec_stage(family, codec)
    return *first, Stage("main", 1 - sum(s.share for s in first), prefixes)


def replaced(tokens: Sequence[Tokens], values: Sequence[Tensor]) -> list[Tokens]:
    """The same runs of tokens with other values, one tensor a run."""
    return [replace(t, values=v) for t, v in zip(tokens, values, strict=True)]


FAMILIES: Registry[type[Family]] = Registry("family", "wamkit.families", package="wamkit.families")
"""All families by name. Packages add theirs under the entry-point group `wamkit.families`."""
