"""Optimisers: Muon for hidden matrices and convolutions, AdamW for everything else, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from wamkit.families.base import Family


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to each of a stack (..., n, m), approximately, by Newton-Schulz iteration.

    Singular values end in about [0.7, 1.2], which is enough. Source: Jordan et al. 2024, "Muon", coefficients included.
    It computes in float32: torch's own Muon computes in bfloat16, ten times slower on a processor without such units.
    Every step multiplies x by a polynomial of its Gram matrix, and these polynomials commute. So the iteration runs on
    the small Gram matrix alone and x is multiplied once: the same result, in half the arithmetic for a matrix four
    times as wide as high.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram, factor = x @ x.mT, torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    for _ in range(steps):
        p = b * gram + c * gram @ gram
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        factor, gram = p @ factor, p @ gram @ p
    x = factor @ x
    return x.mT if tall else x


def local(x: Tensor | None) -> Any:
    """The part of a tensor that this process holds, where it is divided among processes."""
    return x.to_local() if isinstance(x, DTensor) else x


def divided(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which all processes have, divided among them and laid out as `like` is."""
    if isinstance(x, DTensor):
        return x
    if isinstance(like, DTensor):  # whose parts are contiguous; those of x would have its layout
        whole = x.to(like.device).contiguous()
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates, scaled to the size of AdamW's (arXiv:2502.16982, eq. 4).

    A convolution kernel (c_out, c_in, h, w) counts as a matrix (c_out, c_in h w).
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in (p for p in group["params"] if p.grad is not None):
                by_shape.setdefault(p.shape, []).append(p)
            for shape, ps in by_shape.items():
                buffers = [local(self.state[p].setdefault("momentum", torch.zeros_like(p))) for p in ps]
                mine, gradients = ([local(x) for x in every] for every in (ps, [p.grad for p in ps]))
                torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(gradients, buffers, group["momentum"])
                update = self.orthogonal(list(nesterov), shape)
                torch._foreach_mul_(mine, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(mine, update, alpha=-group["lr"] * 0.2 * max(shape[0], shape[1:].numel()) ** 0.5)

    def orthogonal(self, updates: Sequence[Tensor], shape: torch.Size) -> list[Tensor]:
        """Orthogonalised updates of parameters of one shape."""
        return list(orthogonalise(torch.stack(list(updates)).flatten(2)).view(-1, *shape).unbind())


class AdamW(torch.optim.AdamW):
    """Torch's fused AdamW, for gradients of any memory layout.

    Its CPU kernel takes a gradient for one in the layout of the parameter (torch 2.13), so that a contiguous gradient
    of a channels_last parameter would update the wrong values.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.grad is not None and p.grad.stride() != p.stride():
                p.grad = torch.empty_like(p).copy_(p.grad)
        super().step()


class Optimizer:
    """Muon for parameters named by `matrices`, AdamW for the others.

    parts: the torch optimisers that it consists of: AdamW, then one Muon for each of `shards` shards of equal work, so
    that threads can step them side by side. The division changes no result.   muon: the class of these.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        weight_decay: float,
        matrices: Iterable[str] = (),
        shards: int = 1,
        muon: Callable[..., Muon] = Muon,
    ):
        chosen = set(matrices)
        named = list(model.named_parameters())
        rest, hidden = [p for n, p in named if n not in chosen], [p for n, p in named if n in chosen]
        self.parts: list[torch.optim.Optimizer] = [
            AdamW(rest, lr, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)
        ]
        hidden.sort(key=lambda p: tuple(p.shape))  # each shard gets some of every shape
        dealt = [hidden[i::shards] for i in range(shards)]
        self.parts += [muon(shard, lr, weight_decay=weight_decay) for shard in dealt if shard]

    def step(
        self,
        lr: float,
        map: Callable[..., Iterable[None]] = map,
        after: Callable[[list[Tensor]], None] = lambda moved: None,
        scale: Tensor | None = None,
    ) -> None:
        """One step of every part at learning rate `lr`; parameters without a gradient stay as they are.

        map: applies a function to the parts: the builtin, or a thread pool's.   after: called for every part with the
        parameters that it moved.   scale: multiplies all gradients first, in place, to clip them.
        """

        def one(part: torch.optim.Optimizer) -> None:
            moved = [p for group in part.param_groups for p in group["params"] if p.grad is not None]
            if scale is not None and moved:
                torch._foreach_mul_([p.grad for p in moved], scale)
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
            if moved:
                after(moved)

        list(map(one, self.parts))

    def zero_grad(self) -> None:
        """Drops all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The states of all parts, by their number."""
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave, of an optimiser with any number of shards."""
        for i, part in enumerate(self.parts):
            part.load_state_dict(state["0"] if i == 0 else self._dealt(state, i))
            for p, kept in part.state.items():
                for name, x in kept.items():
                    if isinstance(x, Tensor) and x.shape == p.shape:
                        kept[name] = divided(x, p)  # in the layout of the weights, see AdamW

    def _dealt(self, state: Mapping[str, Any], number: int) -> dict[str, Any]:
        """The state of a shard of Muon, whatever shards the state was divided into."""
        before, now = len(state) - 1, len(self.parts) - 1
        own = self.parts[number].state_dict()
        found = {}
        for i in range(len(own["param_groups"][0]["params"])):
            place = i * now + number - 1  # among all matrices
            if (kept := state[str(place % before + 1)]["state"].get(place // before)) is not None:
                found[i] = kept
        return {"state": found, "param_groups": own["param_groups"]}


def muon_matrices(model: Family) -> list[str]:
    """Names of the parameters that Muon moves: convolution kernels, and the matrices of `Family.blocks`.

    Embeddings, heads and norms are AdamW's.
    """
    in_blocks = {p for block in model.blocks() for p in block.parameters() if p.ndim == 2}
    return [name for name, p in model.named_parameters() if p.ndim == 4 or p in in_blocks]
