"""Strategies of one optimisation step: from a batch to gradients, and from gradients to new weights.

    CpuThreads      a CPU: the batch is divided among threads with one core each
    SingleDevice    any device of torch: one batch, one backward pass
    Sharded         several processes of a torchrun, with weights divided among them (`training.sharded`)

Nothing outside of a strategy touches gradients, so another one is one more class.
The noise of a step is a pure function of (seed, step, part of the batch): a resumed run needs no random state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wamkit.config import ConfigError
from wamkit.families.base import Family, Stage
from wamkit.runs.checkpoint import Checkpoint, Place
from wamkit.runs.config import TrainConfig
from wamkit.training.blocks import change_blocks
from wamkit.training.ema import MovingAverage
from wamkit.training.optim import Muon, Optimizer, muon_matrices
from wamkit.training.precision import autocast
from wamkit.training.world import World
from wamkit.types import Batch, WamkitError


class StepResult(NamedTuple):
    """Figures of one step, on the model's device: to read one is to wait for the device.

    losses_B: losses by name, one value a row, unweighted.   norm: global gradient norm before clipping.
    finite: whether all of these are finite.
    """

    losses_B: dict[str, Float[Tensor, " B"]]
    norm: Float[Tensor, ""]
    finite: Bool[Tensor, ""]


class Step(Protocol):
    """A strategy for optimisation steps. It owns the gradients, the optimiser and the moving average of one model."""

    average: MovingAverage

    def begin(self, stage: Stage) -> None:
        """Selects the parameters that `stage` trains. Later steps compute the losses of `stage`."""

    def __call__(self, batch: Batch, step: int, lr: float) -> StepResult:
        """Takes step number `step` on `batch` at learning rate `lr`.

        A parameter of the stage that has no influence on the losses of this batch has a gradient of zero: momentum and
        weight decay still move it. Parameters of other stages have no gradient and stay as they are.
        """

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        """The results of `function` for `items`, in order, computed where the strategy computes."""

    def unchanged(self, stage: Stage) -> Family:
        """A model with the present weights of all that `stage` does not train, which a process can use by itself."""

    def state(self) -> dict[str, Any]:
        """The part of a checkpoint that this strategy owns, as arguments of `runs.checkpoint.save_checkpoint`."""

    place: Place | None
    """Makes tensors for a process' part of a checkpoint; None where a process has all of it."""

    def load_state(self, saved: Checkpoint) -> None:
        """Restores what `state` gave, to the bit."""

    def finish(self) -> None:
        """Gives the model its averaged weights."""


def make_step(model: Family, config: TrainConfig, world: World = World()) -> Step:  # noqa: B008 (frozen)
    """The strategy for `config.device`: threads for "cpu", one plain pass for every other, "cpu:0" among them; that of
    several processes in a larger world."""
    change_blocks(model, config)
    if world.size > 1:
        from wamkit.training.sharded import Sharded

        return Sharded(model, config, world)
    return (CpuThreads if config.device == "cpu" else SingleDevice)(model, config)


def check_learns(model: Family) -> None:
    """Raises ConfigError, naming the stage, where nothing in a stage learns."""
    for stage in model.stages():
        if not model.learning(stage):
            raise ConfigError(
                f"nothing learns in the stage '{stage.name}' of '{model.name}': backbone.freeze leaves it no weights; "
                "choose adapters, or another family"
            )


def check_prefix(model: Family, longest: int) -> None:
    """Raises ConfigError unless `model` can learn with prefixes of up to `longest` steps."""
    if longest and model.denoised is None:
        raise ConfigError(
            f"train.prefix = {longest}: the family {model.name!r} does not denoise its actions, so they cannot begin "
            "with given ones; leave it out, and join its chunks by ensembling"
        )
    if model.denoised is not None and longest > (most := model.spec.chunk - model.denoised.per_token):
        raise ConfigError(
            f"train.prefix = {longest}: a chunk has {model.spec.chunk} actions, {model.denoised.per_token} a token; "
            f"choose at most {most}"
        )


def with_prefix(batch: Batch, longest: int, generator: torch.Generator, problems: int = 1) -> Batch:
    """`batch`, of whose chunks half begin with 1 to `longest` executed actions, which they are given.

    problems: as of `Family`; each draws by itself, so that a row learns with given actions and without.
    """
    shape = (len(batch), problems)
    given = torch.rand(shape, generator=generator) < 0.5
    steps = torch.randint(1, longest + 1, shape, generator=generator)
    return replace(batch, prefix=(steps * given).to(batch.obs.device))


class Strategy:
    """State and losses that all strategies share."""

    place: Place | None = None

    def __init__(self, model: Family, config: TrainConfig, shards: int = 1, muon: Callable[..., Muon] = Muon):
        self.model, self.config = model, config
        self.optimizer = Optimizer(
            model,
            lr=config.lr,
            weight_decay=config.weight_decay,
            matrices=muon_matrices(model) if config.optimizer == "muon" else (),
            shards=shards,
            muon=muon,
        )
        self.average = self.moving_average()
        self.learning: list[Tensor] = []
        self._weights = dict(config.weights)

    def moving_average(self) -> MovingAverage:
        """The average of the model's weights, new."""
        return MovingAverage(self.model, self.config.ema)

    def begin(self, stage: Stage) -> None:
        self.stage, self._unchecked = stage, True
        self.model.train()
        learning = self.model.learning(stage)
        for name, p in self.model.named_parameters():
            p.requires_grad_(name in learning)
        self.learning = [p for p in self.model.parameters() if p.requires_grad]

    def unchanged(self, stage: Stage) -> Family:
        return self.model

    def finish(self) -> None:
        self.model.load_state_dict(self.average.state)

    def check_gradients(self, without: set[int]) -> None:
        """Looks at the first step of a stage: names learning parameters that got no gradient, since no loss depends on
        them. Raises WamkitError where none got one. A gradient of zero is one.

        without: their places in `learning`.
        """
        self._unchecked, first = False, self._unchecked
        if not first or not without:
            return
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        found = ", ".join(names[i] for i in sorted(without)[:4])
        if len(without) == len(names):
            raise WamkitError(
                f"no parameter of the stage '{self.stage.name}' of '{self.model.name}' has a gradient: it would learn "
                "nothing"
            )
        print(
            f"note: {len(without)} of {len(names)} parameters of the stage '{self.stage.name}' have no gradient, "
            f"{found} among them: no loss depends on them",
            flush=True,
        )

    def state(self) -> dict[str, Any]:
        return {
            "model_state": self.model.state_dict(),
            "ema_state": self.average.state,
            "optimizer_state": self.optimizer.state_dict(),
        }

    def load_state(self, saved: Checkpoint) -> None:
        self.model.load_state_dict(saved.model_state)
        self.average.load_state(saved.ema_state)
        self.optimizer.load_state_dict(saved.optimizer_state)

    def losses(self, batch: Batch, step: int, part: int, rows: int) -> tuple[dict[str, Tensor], Tensor]:
        """Losses by name of part number `part` of a batch of `rows` rows, and their weighted sum divided by `rows`."""
        seed = np.random.SeedSequence((self.config.seed, step, part)).generate_state(1, np.uint64)[0] >> 1
        generator = torch.Generator().manual_seed(int(seed))
        if self.config.prefix:
            batch = with_prefix(batch, self.config.prefix, generator, self.model.problems)
        with autocast(self.config):
            losses_B = self.model(batch, generator, self.stage.name)
        total = sum(self._weights.get(name, 1.0) * loss_B.sum() for name, loss_B in losses_B.items()) / rows
        return {name: loss_B.detach() for name, loss_B in losses_B.items()}, total


class CpuThreads(Strategy):
    """Divides each batch among `config.threads` threads with one core each, and sums their gradients.

    Operators release the interpreter's lock, and two such threads are twice as fast as one, while two threads inside
    each operator gave 1.4 times (docs/LOG.md). A step that is not finite moves no weight.
    """

    def __init__(self, model: Family, config: TrainConfig):
        self.threads = min(config.threads, config.batch_size)
        super().__init__(model, config, shards=self.threads)
        self._without: dict[int, set[int]] = {}  # by part, the parameters without influence on its losses
        self._pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self, batch: Batch, step: int, lr: float) -> StepResult:
        parts = [batch.rows(rows) for rows in torch.arange(len(batch)).tensor_split(self.threads)]
        results = list(self.map(lambda i: self.gradients(parts[i], step, i, len(batch)), range(self.threads)))
        losses_B = {name: torch.cat([losses[name] for losses, _ in results]) for name in results[0][0]}
        self.check_gradients(set.intersection(*self._without.values()))
        norm = self._sum_gradients([gradients for _, gradients in results])
        is_finite = finite(losses_B, norm)
        if is_finite:
            # As torch.nn.utils.clip_grads_with_norm_, but on the pool's threads.
            scale = self.config.clip / (norm + 1e-6) if norm.item() > self.config.clip else None
            self.optimizer.step(lr, self.map, partial(self.average.follow, step=step), scale)
            self.model.after_step()
        self.optimizer.zero_grad()
        return StepResult(losses_B, norm, is_finite)

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        return self._pool.map(function, items)

    def gradients(self, batch: Batch, step: int, part: int, rows: int) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """Losses by name, and the gradients of their weighted sum, of part number `part` of a batch of `rows` rows."""
        losses_B, total = self.losses(batch, step, part, rows)
        gradients = torch.autograd.grad(total, self.learning, allow_unused=True)
        pairs = zip(self.learning, gradients, strict=True)
        self._without[part] = {i for i, g in enumerate(gradients) if g is None}
        return losses_B, tuple(torch.zeros_like(p) if g is None else g for p, g in pairs)

    def _sum_gradients(self, gradients: list[tuple[Tensor, ...]]) -> Tensor:
        """Sets every learning parameter's gradient to the sum over the parts; returns the global norm."""
        first, *others = gradients
        count = len(self.learning)

        def sum_shard(shard: range) -> list[Tensor]:
            for i in shard:
                self.learning[i].grad = sum((g[i] for g in others), first[i])
            return list(torch._foreach_norm([self.learning[i].grad for i in shard])) if shard else []

        shards = [range(i, count, self.threads) for i in range(self.threads)]
        norms = dict(zip((i for shard in shards for i in shard), sum(self.map(sum_shard, shards), []), strict=True))
        return torch.linalg.vector_norm(torch.stack([norms[i] for i in range(count)]))


class SingleDevice(Strategy):
    """One forward and backward pass a batch, on any device of torch; the host never waits for the device.

    A step that is not finite spoils the weights in memory. The trainer notices before it saves.
    """

    def __call__(self, batch: Batch, step: int, lr: float) -> StepResult:
        losses_B, total = self.losses(batch.to(self.config.device), step, 0, len(batch))
        total.backward()
        self.check_gradients({i for i, p in enumerate(self.learning) if p.grad is None})
        for p in self.learning:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        norm = torch.nn.utils.clip_grad_norm_(self.learning, self.config.clip)
        self.optimizer.step(lr, after=partial(self.average.follow, step=step))
        self.model.after_step()
        self.optimizer.zero_grad()
        return StepResult(losses_B, norm, finite(losses_B, norm))

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        return map(function, items)


def finite(losses_B: dict[str, Tensor], norm: Tensor) -> Tensor:
    """True, bool (), if all losses and the gradient norm are finite."""
    return torch.stack([torch.isfinite(x).all() for x in (*losses_B.values(), norm)]).all()
