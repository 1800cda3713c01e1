"""`latent_action`: the future as a few discrete codes learned from video alone; actions are read off the codes.

Stands for the leaf cascaded / implicit / latent actions (LAPA, arXiv:2410.11758; villa-X, arXiv:2507.23682). Three
stages: a latent action model encodes the change from one frame to the next (now to f8, f8 to f16, ...) in `codes` code
words, so that the next frame can be redrawn from the one before. Then the backbone predicts the code words. Then it
also denoises actions that see context and codes. No frame is imagined. With the codes of a real future the action head
is an inverse dynamics model.

Departures from the reference code:
* Codes are finite scalar quantisation (FSQ, arXiv:2309.15505) instead of LAPA's NSVQ, whose unused entries must be
  replaced by counters that live between steps. An FSQ entry is a combination of rounded digits: no learned vectors that
  could fall out of use, no commitment loss, no state. An encoder may still map everything to one code, as it does at
  first: `diagnostics` shows how many entries are used. Cells of a digit are of equal width, because the paper's offset
  for even numbers of levels saturates tanh where there are only two.
* Code words of one future are predicted in one pass by queries that see each other, not one after the other. The policy
  reads the expected code word, so digits that the backbone cannot predict are near 0. A sample of independent code
  words could contradict itself, and gradients of the policy stop here, so the codes keep the meaning of video.
* Policy rows train on predicted codes, as they are used; LAPA discards the code head then. The codes go on being
  trained.
* The next frame is redrawn as averages of 4x4 pixels from the frame before, whose pixels hold no gradient (LAPA
  detaches).
* Codes are computed in float32 whatever the backbone's precision: a rounding error that flips a digit is another code.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy
from wamkit.nn import Cache, GivenStream, ImageTokens, Normalizer, QueryStream, canvas, flow, masked_mean
from wamkit.nn.attention_mask import ACTION, CONTEXT, Segment
from wamkit.nn.family_options import LatentActionConfig
from wamkit.nn.tokens import check_finite, grid_of, step_positions, view_cells
from wamkit.types import Batch, Query, Spec


class LatentActionModel(nn.Module):
    """Code words for the change between consecutive frames, and the next frame redrawn from them."""

    def __init__(self, spec: Spec, codes: int, levels: tuple[int, ...], width: int = 64):
        super().__init__()
        self.grid = grid_of(spec, ImageTokens.stride)
        cells, self.codes, digits = prod(self.grid), codes, codes * len(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        strides = torch.tensor([prod(levels[i + 1 :]) for i in range(len(levels))])
        self.register_buffer("strides", strides, persistent=False)
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
        gradients, and their indices (int64 (B, F * codes))."""
        B, count = len(frames), frames.shape[1] - 1
        with torch.autocast(frames.device.type, enabled=False):
            e = self.image(frames.flatten(0, 1)).unflatten(0, (B, count + 1))
            pair = torch.cat([e[:, :-1], e[:, 1:] - e[:, :-1]], -1)
            z = torch.tanh(self.digits(F.silu(self.squeeze(pair)).flatten(2))).view(B, count * self.codes, -1)
            level = ((z.detach() + 1) / 2 * self.levels).floor().minimum(self.levels - 1).clamp(min=0)
            word = z + ((2 * level + 1) / self.levels - 1 - z).detach()
        return word, (level.long() * self.strides).sum(-1)

    def loss(self, batch: Batch, frames: Tensor, valid_BF: Tensor) -> Tensor:
        """Squared error of the redrawn next frames, each from the true one before it: [-1, 1] squared, times 100."""
        low = F.avg_pool2d(frames.flatten(0, 1), ImageTokens.stride // 4).unflatten(0, frames.shape[:2])
        word, _ = self.encode(frames)
        before, after = low[:, :-1].flatten(0, 1), low[:, 1:]
        change = self.change(word.unflatten(1, (-1, self.codes)).flatten(2)).flatten(0, 1)
        change = F.interpolate(change.unflatten(1, (-1, *self.grid)), scale_factor=4)
        x = F.silu(self.norm(self.before(before) + self.place + change))
        redrawn = before + self.out(x + F.silu(self.mix(x))).float()
        error = (redrawn.view_as(after) - after).square().flatten(2)
        seen_BP = view_cells(batch, (3 * after.shape[-2], after.shape[-1]))
        return 100 * masked_mean(error, valid_BF.unsqueeze(2) & seen_BP.unsqueeze(1))


@FAMILIES.register("latent_action")
class LatentAction(Family):
    """A latent action model, a backbone that predicts its codes, and actions read off them."""

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
        place = step_positions([t for t in spec.frame_offsets for _ in range(c.codes)])
        self.latent = LatentActionModel(spec, c.codes, c.levels)
        self.context = c.build_context(spec)
        self.foresee = QueryStream("code query", prod(c.levels), place, D)
        # A word's digits, and whether it is seen or predicted.
        self.given = GivenStream("code word", len(c.levels) + 1, place, D)
        self.action = c.build_action(spec, D)
        self.trunk = c.build_trunk()
        self.declare(self.trunk, denoised=self.action)

    def stages(self) -> tuple[Stage, ...]:
        c = self.config
        trunk, video = ("context", "foresee", "trunk"), frozenset({Query.VIDEO})
        return (
            Stage("latent", c.latent_share, ("latent",), teaches=video),
            Stage("codes", c.codes_share, trunk, teaches=video),
            Stage("action", 1 - c.latent_share - c.codes_share, (*trunk, "given", "action")),
        )

    @torch.no_grad()
    def features(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        """Indices of the code words: later stages do not change the latent action model."""
        return {} if stage == "latent" else {"codes": self.latent.encode(_frames(batch))[1]}

    @torch.no_grad()
    def diagnostics(self, batch: Batch, stage: str) -> dict[str, float]:
        """Entries that the code words of a batch use: exp(entropy), from 1 (collapsed) to all; mean and least."""
        if stage != "latent":
            return {}
        used = self.latent.encode(_frames(batch))[1].unflatten(1, (-1, self.config.codes))[_transitions(batch)]
        share = F.one_hot(used, len(self.latent.words)).float().mean(0)
        perplexity = torch.special.entr(share).sum(-1).exp()
        return {"perplexity": perplexity.mean().item(), "perplexity_least": perplexity.min().item()}

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        """Queries predict code words; actions see words, predicted or seen, and not the queries."""
        words = self.foresee.length
        lengths = {CONTEXT: self.context.length, "code query": words, "code word": words, ACTION: self.action.length}
        seen = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], dtype=torch.bool)
        return [Segment(*s) for s in lengths.items()], seen

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        valid_BF = _transitions(batch)
        if stage == "latent":
            return {"latent": self.latent.loss(batch, _frames(batch), valid_BF)}
        B, device, c = len(batch), batch.obs.device, self.config
        valid_BN = valid_BF.repeat_interleave(c.codes, 1)
        with torch.no_grad():
            index = (batch.features or self.features(batch, stage))["codes"].long()
        _, cache = self.trunk(self.context(batch, self.normalizer, generator))
        logits = self._logits(cache, B)
        error = F.cross_entropy(logits.transpose(1, 2), index, reduction="none")
        losses = {"codes": masked_mean(error, valid_BN & batch.is_demonstration.unsqueeze(1))}
        if stage == "codes":
            return losses
        inverse = (torch.rand(B, generator=generator).to(device) < c.inverse) | ~batch.is_demonstration
        sigma = flow.uniform_sigma(B, generator).to(device)
        sigma = torch.where(inverse, flow.shift_sigma(sigma, c.inverse_shift), sigma)
        rows = inverse.view(B, 1, 1)
        x = self.action.targets(torch.where(rows, batch.action, c.label(batch)), batch, self.normalizer)
        noisy, target = flow.corrupt(x, sigma, generator)
        # Words of transitions that end beyond the episode were not seen.
        seen = self.latent.words[index].masked_fill(~valid_BN.unsqueeze(2), 0)
        cache = self._give(torch.where(rows, seen, self._expected(logits)), inverse, cache)
        y, _ = self.trunk([self.action.tokens(noisy, sigma, batch, self.normalizer)], None, cache)
        error, valid = (self.action.stream.velocity(y[0]) - target).square(), self.action.valid(batch)
        return losses | {"policy": masked_mean(error, valid & ~rows), "action": masked_mean(error, valid & rows)}

    def default_steps(self, query: Query) -> int:
        return self.config.inverse_steps if query is Query.INVERSE else self.config.denoising_steps

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        device, inverse = batch.obs.device, query is Query.INVERSE
        _, cache = self.trunk(self.context(batch, self.normalizer))
        if inverse:
            words, index = self.latent.encode(_frames(batch))
            check_finite(words, "codes")
            word = self.latent.words[index]
        else:
            word = self._expected(self._logits(cache, len(batch)))
        cache = self._give(word, torch.full((len(batch),), inverse, device=device), cache)

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            y, _ = self.trunk([self.action.tokens(x, sigma, batch, self.normalizer)], None, cache)
            return self.action.stream.velocity(y[0])

        path = flow.denoise(steps, self.config.inverse_shift if inverse else 1.0)
        noise = self.action.noise(generators, device)
        return self.action.denoise(velocity, noise, path, batch, self.normalizer), None

    def _logits(self, cache: Cache, rows: int) -> Tensor:
        """The predicted code words, given the context: logits (B, words, entries)."""
        y, _ = self.trunk([self.foresee.tokens(rows)], None, cache)
        return self.foresee.values(y[0])

    def _expected(self, logits: Tensor) -> Tensor:
        """Expected code words (B, words, digits): each digit's mean, between its levels where it is uncertain."""
        return logits.detach().softmax(-1) @ self.latent.words

    def _give(self, word: Tensor, seen_B: Tensor, cache: Cache) -> Cache:
        """The cache after code words that were seen, or predicted."""
        seen = seen_B.to(word.dtype).view(-1, 1, 1).expand(-1, word.shape[1], -1)
        return self.trunk([self.given.tokens(torch.cat([word, seen], -1))], None, cache)[1]


def _frames(batch: Batch) -> Tensor:
    """The present frame and the future ones (B, 1 + F, 3, H, W) in [-1, 1]."""
    return canvas(torch.cat([batch.obs.unsqueeze(1), batch.future], 1))


def _transitions(batch: Batch) -> Tensor:
    """True for transitions between consecutive frames that lie inside the episode (bool (B, F))."""
    return batch.frame_valid.long().cumprod(1).bool()
