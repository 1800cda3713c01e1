"""Weights, gradients and optimiser states divided among the processes of a torchrun (FSDP2).

The model is divided from outside: its blocks one by one, the rest as one more unit. A process computes the losses of
its rows of each batch. Losses are sums divided by the rows of the whole batch, so gradients are summed, never averaged.
The gradients of N processes are those of N threads, to the bit.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from wamkit.config import ConfigError, check_multiple
from wamkit.families.base import Family, Stage
from wamkit.nn.backbones.video_dit import Parts
from wamkit.nn.parameters import set_parameter
from wamkit.runs.checkpoint import Checkpoint, CheckpointError
from wamkit.runs.config import TrainConfig
from wamkit.runs.parts import read_into
from wamkit.runs.run import find_device
from wamkit.training.ema import MovingAverage
from wamkit.training.optim import Muon, divided, orthogonalise
from wamkit.training.precision import uses_bf16
from wamkit.training.sharded_checkpoint import whole
from wamkit.training.step import StepResult, Strategy, finite
from wamkit.training.world import TIMEOUT, World
from wamkit.types import Batch

METHODS = ("generate", "diagnostics", "embed")
"""Methods of a family, beside `forward`, that compute with its weights and that are not called by it."""


def make_mesh(config: TrainConfig, world: World) -> DeviceMesh:
    """The processes as replicas, each of so many processes as divide one copy of the weights."""
    sizes = {"replicate": config.replicas, "shard": world.size // config.replicas}
    if config.replicas == 1:
        del sizes["replicate"]
    kind = torch.device(config.device).type
    mesh = init_device_mesh(kind, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    for name in sizes:
        _set_pg_timeout(TIMEOUT, mesh.get_group(name))  # groups of a mesh have one of minutes
    return mesh


class _Units(nn.ModuleList):
    """Units of sharding that own none of their weights: nothing of them is in a state dict."""

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        return {} if destination is None else destination


def parallelise(model: Family, mesh: DeviceMesh, config: TrainConfig) -> None:
    """Divides the weights of `model` among the processes of `mesh`, in place.

    Raises ConfigError for a model whose blocks are used otherwise than by calling them.
    """
    if getattr(model.config, "conditioning", "prefix") == "cross":
        raise ConfigError("conditioning cross reads weights inside of blocks, which are divided among processes here")
    # Blocks return keys and values as views, which nothing changes in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    model.to(memory_format=torch.contiguous_format)  # FSDP2 refuses channels_last weights
    policy = MixedPrecisionPolicy()
    if uses_bf16(config) and mesh.device_type != "cpu":  # a CPU's norms take float32 weights, and autocast casts them
        # Inputs stay as they are, since positions and noise levels are float32.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for backbone in model.backbones:
        own = {id(m) for m in backbone.modules()}
        if units := [layer for layer in backbone.layers() if id(layer) not in own]:
            backbone.add_module("_units", _Units(units))
        for layer in backbone.layers():
            fully_shard(layer, mesh=mesh, mp_policy=policy)
    divided = {p for backbone in model.backbones for layer in backbone.layers() for p in layer.parameters()}
    # By default the rest would stay whole after a forward pass, and a stage that begins then would change the copies.
    fully_shard(model, mesh=mesh, ignored_params=divided, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(mesh.device_type == "cpu")  # gloo has no other product of sums
    for name in METHODS:
        register_fsdp_forward_method(model, name)


def materialise(model: Family, device: torch.device) -> None:
    """Gives memory to divided weights that were built without, and reads this process' part of released ones.

    Raises WamkitError for files that lack some of them.
    """
    for parts in [m for m in model.modules() if isinstance(m, Parts)]:
        own = {name: p for name, p in parts.named_parameters() if p.is_meta}
        for name, p in own.items():
            own[name] = set_parameter(parts, name, torch.empty_like(p, device=device), p.requires_grad)
        if parts.unread is None:
            continue
        wanted: dict[str, list[Tensor]] = {}
        for name, of in parts.unread.names.items():
            wanted.setdefault(of, []).append(own[name].detach())
        files, parts.unread = parts.unread.files, None
        read_into({of: every[0] for of, every in wanted.items()}, files)
        for first, *others in wanted.values():
            for other in others:
                other.copy_(first)


def blank(model: Family) -> Family:
    """A copy of `model` without the memory of its weights."""
    shapes = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()}
    copied = copy.deepcopy(model, shapes)
    for name in copied.frozen:  # which a copy shares
        set_parameter(copied, name, copied.get_parameter(name).detach().to("meta"))
    return copied


def gathered(x: Any, first: bool) -> Any:
    """All of a divided tensor on the CPU in the `first` process; an empty one in others, which do not keep it."""
    full = whole(x)
    if not isinstance(full, Tensor):
        return full
    return full.cpu() if first else torch.empty(0)


class ShardedMuon(Muon):
    """`Muon` on divided matrices: each is orthogonalised by one process, which gets it whole and sends it back.

    Of matrices of one shape, process i takes every size-th one, starting with number i. The result is that of `Muon`.
    group: the processes that divide one copy of the weights.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, *, group: dist.ProcessGroup, **options: float):
        super().__init__(params, lr, **options)
        self._group = group

    def orthogonal(self, updates: Sequence[Tensor], shape: torch.Size) -> list[Tensor]:
        rank, size = dist.get_rank(self._group), dist.get_world_size(self._group)
        columns, cuts = shape[1:].numel(), [len(c) for c in torch.arange(shape[0]).chunk(size)]
        cuts += [0] * (size - len(cuts))
        out = []
        for at in range(0, len(updates), size):
            some = updates[at : at + size]
            own = [cuts[rank] * columns if i < len(some) else 0 for i in range(size)]  # of each matrix, here
            theirs = [n * columns if rank < len(some) else 0 for n in cuts]  # of this process' matrix, elsewhere
            matrix = self._exchanged(torch.cat([x.reshape(-1) for x in some]), own, theirs)
            if rank < len(some):
                matrix = orthogonalise(matrix.view(1, shape[0], columns)).reshape(-1)
            home = self._exchanged(matrix, theirs, own).split(own)
            out += [x.view_as(y) for x, y in zip(home, some, strict=False)]
        return out

    def _exchanged(self, x: Tensor, sent: Sequence[int], got: Sequence[int]) -> Tensor:
        """Values that all processes sent to this one, joined. sent, got: their numbers, by process."""
        out = x.new_empty(sum(got))
        dist.all_to_all_single(out, x, list(got), list(sent), group=self._group)
        return out


class ShardedAverage(MovingAverage):
    """A moving average whose tensors are divided as the weights are.

    blank: the model as it was built, for serving whole weights.
    """

    def __init__(self, model: Family, decay: float, blank: Family):
        super().__init__(model, decay)
        self._blank = blank

    def whole(self, first: bool) -> dict[str, Tensor]:
        """All averaged weights, whole. first: for the process that keeps them."""
        return {name: gathered(x, first) for name, x in self.state.items()}

    def served(self, model: Family) -> Family:
        """As `MovingAverage.served`, in the first process; a model without weights in all others."""
        served, first = copy.deepcopy(self._blank), dist.get_rank() == 0
        state, frozen = self.whole(first), model.frozen
        released = {name: gathered(p.detach(), first) for name, p in model.named_parameters() if name in frozen}
        if not first:
            return served
        for name, x in released.items():
            set_parameter(served, name, x)
        served.load_state_dict(state, assign=True)
        return served.to(next(model.parameters()).device).eval()

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, x in state.items():
            self.state[name].copy_(divided(x, self.state[name]))


class Sharded(Strategy):
    """A step of several processes, each with its rows of the batch and its part of every weight."""

    def __init__(self, model: Family, config: TrainConfig, world: World):
        if config.batch_size < world.size:
            raise ConfigError(
                f"train.batch_size = {config.batch_size}: fewer rows than the {world.size} processes; choose more "
                "rows, or start fewer processes"
            )
        check_multiple("the number of processes", world.size, "train.replicas", config.replicas)
        self.world, self._blank = world, blank(model)
        mesh = make_mesh(config, world)
        parallelise(model, mesh, config)
        materialise(model, find_device(config.device))
        super().__init__(model, config, muon=partial(ShardedMuon, group=mesh["shard"].get_group()))
        self.place, self._own = self._placed, model.state_dict()

    def moving_average(self) -> MovingAverage:
        return ShardedAverage(self.model, self.config.ema, self._blank)

    def __call__(self, batch: Batch, step: int, lr: float) -> StepResult:
        losses_B, total = self.losses(batch.to(self.config.device), step, self.world.rank, self.config.batch_size)
        total.backward()
        self.check_gradients({i for i, p in enumerate(self.learning) if p.grad is None})
        for p in self.learning:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        every = self.world.gather(torch.stack(list(losses_B.values()), 1), self.config.batch_size)
        losses_B = dict(zip(losses_B, every.unbind(1), strict=True))
        norm = whole(torch.nn.utils.get_total_norm([p.grad for p in self.learning if p.grad is not None]))
        result = StepResult(losses_B, norm, finite(losses_B, norm))
        if result.finite:
            torch.nn.utils.clip_grads_with_norm_(self.learning, self.config.clip, norm)
            self.optimizer.step(lr, after=partial(self.average.follow, step=step))
            self.model.after_step()
        self.optimizer.zero_grad()
        return result

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        return map(function, items)

    def unchanged(self, stage: Stage) -> Family:
        found = copy.deepcopy(self._blank)
        if self.model.codec is None or not self.model.codec.pretrained:
            for name, x in self.model.named_parameters():
                if not name.startswith(stage.prefixes):
                    set_parameter(found, name, whole(x.detach()))
        for buffer in found.buffers():
            buffer.data = buffer.data.to(find_device(self.config.device))
        return found

    def _placed(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """An empty tensor, divided as the weight is that the saved tensor belongs to. See `runs.checkpoint.Place`."""
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            part, _, number, _ = rest.split(".")
            like = self.optimizer.parts[int(part)].param_groups[0]["params"][int(number)]
        else:
            like = self._own.get(rest)
        divided = isinstance(like, DTensor) and like.shape == shape
        return torch.empty_like(like, dtype=dtype) if divided else torch.empty(shape, dtype=dtype)

    @torch.no_grad()
    def load_state(self, saved: Checkpoint) -> None:
        own = self.model.state_dict()
        if differ := sorted(own.keys() ^ saved.model_state.keys()):
            raise CheckpointError(f"{saved.path} has other weights than this model: {differ[0]}, one of {len(differ)}")
        for name, x in saved.model_state.items():
            own[name].copy_(divided(x, own[name]))
        self.average.load_state(saved.ema_state)
        self.optimizer.load_state_dict(saved.optimizer_state)

    @torch.no_grad()
    def finish(self) -> None:
        own = self.model.state_dict()
        for name, x in self.average.state.items():
            own[name].copy_(x)
