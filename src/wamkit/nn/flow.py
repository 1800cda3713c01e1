"""Flow matching with one noise level per stream: paths, samplers of noise levels, schedules, the Euler integrator.

Convention, fixed once: sigma = 0 is clean, sigma = 1 is noise, x_sigma = (1 - sigma) x + sigma eps, and the network
predicts the velocity v = dx_sigma / dsigma = eps - x (rectified flow, Liu et al. 2022, eq. 1, with time reversed).

A *schedule* is the list of noise levels that one stream takes during sampling. The schedules alone decide which query
is asked: `denoise` for a stream that the query asks for, `hold` at 0 for one that it gives, `hold` at 1 for one that it
does neither (UWM, arXiv:2504.02792).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Velocity = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]


def interpolate(x: Tensor, eps: Tensor, sigma_B: Tensor) -> Tensor:
    """The point x_sigma on the straight path from data `x` (B, ...) to noise `eps`, with one sigma in [0, 1] a row.

    Examples:
        >>> data, noise = torch.zeros(2, 3), torch.ones(2, 3)
        >>> interpolate(data, noise, torch.tensor([0.0, 0.25]))
        tensor([[0.0000, 0.0000, 0.0000],
                [0.2500, 0.2500, 0.2500]])
    """
    sigma = sigma_B.view(-1, *[1] * (x.dim() - 1))
    return torch.lerp(x, eps, sigma)


def corrupt(x: Tensor, sigma_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`x` (B, ...) with noise at one level a row, and the velocity there: x_sigma and eps - x.

    The noise is drawn on the CPU, so that all devices agree.
    """
    eps = torch.randn(x.shape, generator=generator).to(x.device)
    return interpolate(x, eps, sigma_B), eps - x


def uniform_sigma(count: int, generator: torch.Generator) -> Tensor:
    """`count` noise levels, stratified over (0, 1): one in each of `count` equal bins, shuffled.

    Stratification keeps the distribution uniform and removes the variance of the levels between batches.
    """
    bins = torch.randperm(count, generator=generator)
    return (bins + torch.rand(count, generator=generator)) / count


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """phi(u) = s u / (1 + (s - 1) u): shift > 1 moves levels towards noise (SD3, arXiv:2403.03206, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def denoise(steps: int, shift: float = 1.0, until: float = 0.0) -> tuple[float, ...]:
    """The schedule 1 -> `until` in `steps` Euler steps: steps + 1 levels, the first and the last exact.

    until > 0 leaves the stream partly noisy: the events are decided by then (LingBot-VA's partial denoising).

    Examples:
        >>> denoise(4)
        (1.0, 0.75, 0.5, 0.25, 0.0)
    """
    if steps < 1:
        raise ValueError(f"a schedule needs at least one denoising step, got {steps}")
    inner = shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).tolist()[1:-1]
    return (1.0, *(until + (1 - until) * s for s in inner), float(until))


def slow(schedule: tuple[float, ...], every: int) -> tuple[float, ...]:
    """`schedule`, moving at every `every`-th step only (DUST's asynchronous sampling): as many steps, fewer levels."""
    last = len(schedule) - 1
    return tuple(schedule[min(i // every * every, last)] if i < last else schedule[last] for i in range(last + 1))


def hold(sigma: float, steps: int) -> tuple[float, ...]:
    """The schedule that stays at `sigma`: 0 for a given stream, 1 for one that is neither given nor asked for."""
    return (float(sigma),) * (steps + 1)


def one_after_the_other(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Two schedules in sequence: the second stream waits at its first level, then the first one holds its last."""
    return first + hold(first[-1], len(second) - 2), hold(second[0], len(first) - 2) + second


@dataclass(frozen=True)
class Guide:
    """Draws the sample of a stream towards `target` (B, L, c), value by value with `weight` (B, L, c) from 0 to 1.

    Pseudoinverse guidance (Song et al. 2023) for flows, as real-time chunking inpaints with it (arXiv:2506.07339, eq.
    2 to 4; its time is 1 - sigma). Its strength near noise is at most `most`, as there.
    """

    target: Tensor
    weight: Tensor
    most: float = 5.0

    def strength(self, sigma: float) -> float:
        """The factor of the correction at a noise level."""
        if sigma in (0, 1):
            return self.most if sigma else 0.0
        return min(self.most, (sigma**2 + (1 - sigma) ** 2) / (sigma * (1 - sigma)))


def euler(
    velocity: Velocity,
    start: Mapping[str, Tensor],
    schedules: Mapping[str, tuple[float, ...]],
    guides: Mapping[str, Guide] | None = None,
) -> dict[str, Tensor]:
    """Integrates every stream along its own schedule with Euler's method.

    velocity: maps (state, noise levels) to one velocity a moving stream, each of the stream's shape. A level is
        float32 (1,) on the device of the states.
    start: stream -> its state at the first level of its schedule (noise at 1, data at 0).
    schedules: stream -> noise levels, all of one length. Streams that hold are returned unchanged, bit for bit.
    guides: stream -> what its sample is drawn to. They take a gradient through `velocity`, so inference mode must be
        off.

    Raises ValueError where schedules are missing or differ in length.

    Examples:
        With the true velocity, eps - x, any number of steps leads from the noise to the data:

        >>> x, eps = torch.tensor([2.0]), torch.tensor([-1.0])
        >>> euler(lambda state, sigma: {"action": eps - x}, {"action": eps}, {"action": denoise(4)})
        {'action': tensor([2.])}
    """
    lengths = {len(s) for s in schedules.values()}
    if len(lengths) != 1 or set(start) != set(schedules):
        raise ValueError(f"streams {sorted(start)} need one schedule each, of one length; got {dict(schedules)}")
    state, device = dict(start), next(iter(start.values())).device
    sigma = {name: torch.tensor(s, dtype=torch.float32, device=device) for name, s in schedules.items()}
    for i in range(lengths.pop() - 1):
        levels = {name: s[i : i + 1] for name, s in sigma.items()}
        moving = {name: s[i + 1] - s[i] for name, s in schedules.items() if s[i + 1] != s[i]}
        guided = {name: guide for name, guide in (guides or {}).items() if name in moving}
        v = _guided(velocity, state, levels, guided) if guided else velocity(state, levels)
        for name, delta in moving.items():
            state[name] = state[name] + delta * v[name]
    return state


def _guided(
    velocity: Velocity, state: Mapping[str, Tensor], sigma: Mapping[str, Tensor], guides: Mapping[str, Guide]
) -> dict[str, Tensor]:
    """Velocities that lead guided streams towards their targets; those of the others are left as they are."""
    with torch.enable_grad():
        leaves = {name: state[name].detach().requires_grad_() for name in guides}
        v = dict(velocity({**state, **leaves}, sigma))
        clean = {name: x - sigma[name] * v[name] for name, x in leaves.items()}
        misses = [g.weight * (g.target - clean[name].detach()) for name, g in guides.items()]
        pulls = torch.autograd.grad(list(clean.values()), list(leaves.values()), misses)
    v = {name: x.detach() for name, x in v.items()}
    for (name, guide), pull in zip(guides.items(), pulls, strict=True):
        v[name] = v[name] - guide.strength(float(sigma[name])) * pull
    return v


def integrate(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, schedule: tuple[float, ...]) -> Tensor:
    """`euler` for one stream: maps noise to data with velocity(state, noise level)."""
    return euler(lambda x, s: {"x": velocity(x["x"], s["x"])}, {"x": noise}, {"x": schedule})["x"]


def row_noise(generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal noise (B, *shape): row i from generators[i], drawn on the CPU, so that all devices agree."""
    return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
