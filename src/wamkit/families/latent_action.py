"""`latent_action`: what happens next as a few discrete codes learned from video alone; actions are read off the codes.

Stands for the leaf cascaded / implicit / latent actions (LAPA, arXiv:2410.11758; villa-X, arXiv:2507.23682). Three
stages: a latent action model writes down in `codes` code words what changes from one frame to the next (now to f8, f8
to f16, ...), so that the next frame can be redrawn from the one before; then the trunk foresees the code words; then it
goes on to actions that see context and codes. No picture is imagined. With the codes of a real future the action head
is an inverse dynamics model.

Where this differs from the reference code, on purpose:
* Codes are finite scalar quantisation (FSQ, arXiv:2309.15505) instead of LAPA's NSVQ, whose unused entries must be
  replaced by counters that live between steps. An FSQ entry is a combination of rounded digits: no learned vectors that
  could fall out of use, no commitment loss, nothing to remember. An encoder may still say one thing of everything, as
  it does at first: `diagnostics` shows how many entries are used. Cells of a digit are of equal width, because the paper's
  offset for even numbers of levels saturates tanh where there are only two.
* Code words of one future are foreseen in one pass by queries that see each other, not one after the other. What the
  policy reads is the expected code word, so digits that the trunk cannot foresee are near 0 and say so; a sample of
  independent code words could contradict itself, and gradients of the policy stop here, so codes stay what video says.
* Policy rows train on foreseen codes, as they are used; LAPA throws the code head away then. The codes go on being
  trained.
* The next frame is redrawn as averages of 4x4 pixels from the frame before, whose pixels hold no gradient (LAPA
  detaches).
* Codes are computed in float32 whatever the trunk's precision: a rounding error that flips a digit is another code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wamkit.config import check_bounds
from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy
from wamkit.nn.attention_mask import ACTION, CONTEXT, Segment
from wamkit.nn.backbones.transformer import Cache, Trunk
from wamkit.nn.encoders import build_text
from wamkit.nn.flow import denoise, euler, interpolate, row_noise, shift_sigma, uniform_sigma
from wamkit.nn.heads import ActionChunk, GivenStream, QueryStream, masked_mean
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.options import TrunkConfig
from wamkit.nn.tokens import ContextTokens, ImageTokens, canvas, cells_of, context_length
from wamkit.types import Batch, Query, Spec


@dataclass(frozen=True)
class LatentActionConfig(TrunkConfig):
    """Sizes and choices of the family `latent_action`."""

    codes: int = 4
    """Code words for each transition between consecutive frames."""
    levels: tuple[int, ...] = (2, 2, 2)
    """Levels of each digit of a code word; their product is the number of entries, LAPA's 8."""
    latent_share: float = 0.3
    """Share of all steps that train the latent action model."""
    codes_share: float = 0.3
    """Share of all steps that train the trunk on codes alone; what is left trains actions."""
    actions_per_token: int = 4
    policy_label: Literal["expert", "executed"] = "expert"
    inverse: float = 0.3
    """Share of rows that train inverse dynamics: codes of the real future are given."""
    inverse_shift: float = 9.0
    """Moves the action's noise levels of those rows towards noise: trained where they are sampled, in one step."""
    inverse_steps: int = 1
    """Of inverse queries: one Euler step from pure noise gives the mean, the best estimate of what was done."""
    denoising_steps: int = 4

    def __post_init__(self) -> None:
        check_bounds(self, codes=(1, inf), levels=(2, inf), latent_share=(0.01, 0.98))
        check_bounds(self, codes_share=(0.005, 0.995 - self.latent_share))


class LatentActionModel(nn.Module):
    """What changes between consecutive frames as code words, and the next frame redrawn from them."""

    def __init__(self, spec: Spec, codes: int, levels: tuple[int, ...], width: int = 64):
        super().__init__()
        cells, self.grid = cells_of(spec), (spec.height // 16, spec.width * spec.views // 16)
        self.codes, digits = codes, codes * len(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer(
            "strides", torch.tensor([prod(levels[i + 1 :]) for i in range(len(levels))]), persistent=False
        )
        places = [[(2 * i + 1) / n - 1 for i in range(n)] for n in levels]
        self.register_buffer("words", torch.tensor(list(product(*places))), persistent=False)
        self.image, self.squeeze = ImageTokens(width), nn.Linear(2 * width, 32)
        self.digits = nn.Sequential(nn.Linear(32 * cells, 128), nn.SiLU(), nn.Linear(128, digits))
        self.before, self.change = nn.Conv2d(3, width, 3, padding=1), nn.Linear(digits, width * cells)
        self.place = nn.Parameter(torch.zeros(1, width, 4 * self.grid[0], 4 * self.grid[1]))
        self.mix, self.out = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.norm = nn.GroupNorm(8, width)

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, 1 + F, 3, H, W) in [-1, 1] -> code words (B, F * codes, digits a word), with straight-through
        gradients, and their numbers (int64 (B, F * codes))."""
        B, count = len(frames), frames.shape[1] - 1
        with torch.autocast(frames.device.type, enabled=False):
            e = self.image(frames.flatten(0, 1)).unflatten(0, (B, count + 1))
            pair = torch.cat([e[:, :-1], e[:, 1:] - e[:, :-1]], -1)
            z = torch.tanh(self.digits(F.silu(self.squeeze(pair)).flatten(2))).view(B, count * self.codes, -1)
            level = ((z.detach() + 1) / 2 * self.levels).floor().minimum(self.levels - 1).clamp(min=0)
            word = z + ((2 * level + 1) / self.levels - 1 - z).detach()
        return word, (level.long() * self.strides).sum(-1)

    def loss(self, frames: Tensor, valid_BF: Tensor) -> Tensor:
        """Squared error of the redrawn next frames, each from the true one before it: [-1, 1] squared, times 100."""
        low = F.avg_pool2d(frames.flatten(0, 1), 4).unflatten(0, frames.shape[:2])
        word, _ = self.encode(frames)
        before, after = low[:, :-1].flatten(0, 1), low[:, 1:]
        change = self.change(word.unflatten(1, (-1, self.codes)).flatten(2)).flatten(0, 1)
        change = F.interpolate(change.unflatten(1, (-1, *self.grid)), scale_factor=4)
        x = F.silu(self.norm(self.before(before) + self.place + change))
        redrawn = before + self.out(x + F.silu(self.mix(x))).float()
        error = (redrawn.view_as(after) - after).square().flatten(2)
        return 100 * masked_mean(error, valid_BF.unsqueeze(2))


@FAMILIES.register("latent_action")
class LatentAction(Family):
    """See the module's docstring."""

    name = "latent_action"
    taxonomy = Taxonomy(
        "cascaded / implicit / latent actions",
        "latent actions",
        "actions see foreseen codes",
        "trunk denoises",
        "detached",
    )
    queries = frozenset({Query.POLICY, Query.INVERSE})
    Config = LatentActionConfig

    def __init__(self, config: LatentActionConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        c, D = config, config.width
        words = c.codes * len(spec.frame_offsets)
        self.latent = LatentActionModel(spec, c.codes, c.levels)
        self.context = ContextTokens(D, spec, build_text(c.text, D), c.proprio_noise)
        self.foresee = QueryStream(prod(c.levels), words, D)
        self.given = GivenStream(len(c.levels) + 1, words, D)  # a word's digits, and whether it was seen or foreseen
        self.action = ActionChunk(spec, D, c.actions_per_token)
        self.trunk = Trunk(D, c.depth, c.heads)

    def stages(self) -> tuple[Stage, ...]:
        c = self.config
        trunk = ("context", "foresee", "trunk")
        return (
            Stage("latent", c.latent_share, ("latent",)),
            Stage("codes", c.codes_share, trunk),
            Stage("action", 1 - c.latent_share - c.codes_share, (*trunk, "given", "action")),
        )

    # --------------------------------------------------------------------------------------------------------- training

    @torch.no_grad()
    def features(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        """Numbers of the code words: later stages do not change the latent action model."""
        return {} if stage == "latent" else {"codes": self.latent.encode(_frames(batch))[1]}

    def diagnostics(self, batch: Batch, stage: str) -> dict[str, float]:
        return self.usage(batch) if stage == "latent" else {}

    @torch.no_grad()
    def usage(self, batch: Batch) -> dict[str, float]:
        """How many entries the code words of a batch use: exp(entropy), from 1 (collapsed) to all; mean and least."""
        used = self.latent.encode(_frames(batch))[1].unflatten(1, (-1, self.config.codes))[_transitions(batch)]
        share = F.one_hot(used, len(self.latent.words)).float().mean(0)
        perplexity = torch.special.entr(share).sum(-1).exp()
        return {"perplexity": perplexity.mean().item(), "perplexity_least": perplexity.min().item()}

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        """Queries foresee code words; actions look at words, foreseen or seen, and not at the queries."""
        words = self.config.codes * len(self.spec.frame_offsets)
        lengths = {
            CONTEXT: context_length(self.spec),
            "code query": words,
            "code word": words,
            ACTION: self.action.length,
        }
        seen = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], dtype=torch.bool)
        return [Segment(*s) for s in lengths.items()], seen

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        valid_BF = _transitions(batch)
        if stage == "latent":
            return {"latent": self.latent.loss(_frames(batch), valid_BF)}
        valid_BN, is_demonstration = (
            valid_BF.repeat_interleave(self.config.codes, 1),
            batch.is_demonstration.unsqueeze(1),
        )
        with torch.no_grad():
            number = (batch.features or self.features(batch, stage))["codes"].long()
        _, known = self.trunk(self.context(batch, self.normalizer, generator))
        logits = self._logits(known, len(batch))
        error = F.cross_entropy(logits.transpose(1, 2), number, reduction="none")
        losses = {"codes": masked_mean(error, valid_BN & is_demonstration)}
        if stage == "codes":
            return losses
        B, device, c = len(batch), batch.obs.device, self.config
        inverse = (torch.rand(B, generator=generator).to(device) < c.inverse) | ~batch.is_demonstration
        sigma = uniform_sigma(B, generator).to(device)
        sigma = torch.where(inverse, shift_sigma(sigma, c.inverse_shift), sigma)
        label = batch.action_expert if c.policy_label == "expert" else batch.action
        label = torch.where(inverse.view(B, 1, 1), batch.action, label)
        x = self.action.known(label, batch, self.normalizer)
        eps = torch.randn(x.shape, generator=generator).to(device)
        # Words of transitions that end beyond the episode were not seen.
        seen = self.latent.words[number].masked_fill(~valid_BN.unsqueeze(2), 0)
        word = torch.where(inverse.view(B, 1, 1), seen, self._expected(logits))
        _, known = self.trunk(self._given(word, inverse), None, known)
        y, _ = self.trunk(self.action.tokens(interpolate(x, eps, sigma), sigma, batch), None, known)
        error, valid = (self.action.stream.velocity(y) - (eps - x)).square(), self.action.valid(batch)
        losses["policy"] = masked_mean(error, valid & ~inverse.view(B, 1, 1))
        losses["action"] = masked_mean(error, valid & inverse.view(B, 1, 1))
        return losses

    # --------------------------------------------------------------------------------------------------------- sampling

    def default_steps(self, query: Query) -> int:
        return self.config.inverse_steps if query is Query.INVERSE else self.config.denoising_steps

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        device, inverse = batch.obs.device, query is Query.INVERSE
        _, known = self.trunk(self.context(batch, self.normalizer))
        if inverse:
            word = self.latent.words[self.latent.encode(_frames(batch))[1]]
        else:
            word = self._expected(self._logits(known, len(batch)))
        _, known = self.trunk(self._given(word, torch.full((len(batch),), inverse, device=device)), None, known)

        def velocity(state: dict[str, Tensor], sigma: dict[str, float]) -> dict[str, Tensor]:
            level = torch.full((1,), sigma[ACTION], device=device)
            y, _ = self.trunk(self.action.tokens(state[ACTION], level, batch), None, known)
            return {ACTION: self.action.stream.velocity(y)}

        noise = row_noise(generators, (self.action.length, self.action.channels), device)
        path = denoise(steps, self.config.inverse_shift if inverse else 1.0)
        return self.action.unpack(euler(velocity, {ACTION: noise}, {ACTION: path})[ACTION], self.normalizer), None

    def _logits(self, known: Cache, rows: int) -> Tensor:
        """What the trunk foresees, given the context: logits (B, words, entries)."""
        y, _ = self.trunk(self.foresee.tokens(rows), None, known)
        return self.foresee.values(y)

    def _expected(self, logits: Tensor) -> Tensor:
        """Expected code words (B, words, digits); each digit's mean, which lies between its levels where it is open."""
        return logits.detach().softmax(-1) @ self.latent.words

    def _given(self, word: Tensor, seen_B: Tensor) -> Tensor:
        seen = seen_B.to(word.dtype).view(-1, 1, 1).expand(-1, word.shape[1], -1)
        return self.given.tokens(torch.cat([word, seen], -1))


def _frames(batch: Batch) -> Tensor:
    """The present frame and the future ones (B, 1 + F, 3, H, W) in [-1, 1]."""
    return canvas(torch.cat([batch.obs.unsqueeze(1), batch.future], 1))


def _transitions(batch: Batch) -> Tensor:
    """Which transitions between consecutive frames lie inside the episode (bool (B, F))."""
    return batch.frame_valid.long().cumprod(1).bool()
