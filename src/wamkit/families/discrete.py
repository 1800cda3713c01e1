"""`discrete`: future pictures and actions are tokens of one vocabulary, written one after the other.

Stands for the leaf joint / autoregressive / unified-discrete (WorldVLA, arXiv:2506.21539; CoT-VLA, arXiv:2503.22020). One table
embeds all tokens and one head says the next. A sequence is [context | a block an action step | a block a future frame]. Which of the
two is written first is a mask, drawn a row: actions first trains the policy and forward dynamics (WorldVLA's action and world
model), frames first trains video and the actions that explain it (CoT-VLA's visual chain of thought; inverse dynamics). A block
begins with a mark, and each token is said where the one before it stands. By WorldVLA's action mask a step ignores the actions
of other steps, so that all steps are written at once, a dimension a pass.

`decode = "parallel"` is mask diffusion instead (UD-VLA, arXiv:2511.01718): a random share of slots is blank, slots of one modality all
see each other, and sampling fills in the surest first, in rounds on a cosine schedule.

Where this differs from the reference code, on purpose:
* The present comes in as soft tokens of the shared encoder, as in every family here: rounding what is known costs precision, and
  nobody has to say it. Codes of the future are made given the present (`nn.codec`). The instruction is one token, the mean of its
  words' rows in the table.
* Logits span the ids that can stand at a place, not the whole vocabulary. Losses are means over valid tokens: WorldVLA's image
  weight is a class weight, which cancels in batches of images alone.
* Neighbouring bins are alike: targets of actions are Gaussians over bins (HL-Gauss), and at temperature 0 the answer is the bin nearest
  to the mean. Actions outside the bins are clipped, and counted (`diagnostics`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wamkit.config import check_bounds
from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy
from wamkit.nn.attention_mask import ACTION, CONTEXT, FUTURE, Segment, expand, in_order
from wamkit.nn.autoencoders.frame_codec import CodeConfig, FutureCodes
from wamkit.nn.backbones.transformer import Read, Trunk
from wamkit.nn.heads import masked_mean
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.tokens import ContextTokens, context_length
from wamkit.nn.vocabulary import Vocabulary, from_digits, to_digits
from wamkit.types import Batch, Query, Spec

UNKNOWN = -1
"""In place of a code that is not known: not yet, or not at all."""


@dataclass(frozen=True)
class DiscreteConfig:
    """Sizes and choices of the family `discrete`."""

    width: int = 128
    depth: int = 4
    heads: int = 4
    codes: CodeConfig = field(default_factory=CodeConfig)
    """Image tokens."""
    bins: int = 256
    """Action tokens: evenly spaced values of one dimension."""
    reach: float = 4.0
    """Standard deviations from the mean to the outermost bins."""
    smooth: float = 3.0
    """Standard deviation, in bins, of an action's target; 0: one bin."""
    words: int = 1024
    """Text tokens: words and word pairs are hashed to so many ids."""
    codec_lr: float = 1.2
    codec_share: float = 0.4
    decode: Literal["ar", "parallel"] = "ar"
    """One token after the other, or masked slots in rounds."""
    action_mask: bool = True
    """Whether an action step ignores the actions of other steps (of "ar"; "parallel" slots see each other)."""
    joint: Literal["cot", "world"] = "cot"
    """What the joint query writes first: frames (chain of thought), or actions."""
    frames_first: float = 0.5
    """Share of training rows that are written in that order."""
    clean: float = 0.5
    """Of "parallel": share of training rows whose first modality has no blanks."""
    temperature: float = 0.3
    """Of image tokens; 0 takes the likeliest, which imagines no better."""
    action_temperature: float = 0.0
    """Of action tokens; 0 takes the mean."""
    proprio_noise: float = 0.05
    denoising_steps: int = 4
    """Of "parallel": rounds in which a future is filled in; 8 imagined no better."""
    policy_steps: int = 1
    """Of "parallel": rounds in which actions are."""

    def __post_init__(self) -> None:
        check_bounds(self, bins=(2, inf), words=(1, inf), reach=(1e-6, inf), smooth=(0, inf))
        check_bounds(self, frames_first=(0, 1), clean=(0, 1), temperature=(0, inf), action_temperature=(0, inf))


@FAMILIES.register("discrete")
class Discrete(Family):
    """See the module's docstring."""

    name = "discrete"
    taxonomy = Taxonomy(
        "joint / autoregressive / unified-discrete", "discrete codes", "one sequence, in two orders", "next or masked tokens", "joint"
    )  # fmt: skip
    queries = frozenset(Query)
    Config = DiscreteConfig

    def __init__(self, config: DiscreteConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        c, D = config, config.width
        vocabulary = Vocabulary(D, c.words, {FUTURE: c.codes.size, ACTION: c.bins})
        self.context = ContextTokens(D, spec, vocabulary, c.proprio_noise)
        self.future = FutureCodes(spec, c.codes)
        self.trunk = Trunk(D, c.depth, c.heads)
        self.num_markers = 1 if c.decode == "ar" else 0  # marks at the start of a block
        self.shape = {ACTION: (spec.chunk, spec.action_dim), FUTURE: (len(spec.frame_offsets), self.future.length)}
        self.length = {n: blocks * (self.num_markers + size) for n, (blocks, size) in self.shape.items()}
        self.at = {ACTION: (K := context_length(spec)), FUTURE: K + self.length[ACTION]}  # where they begin
        self.temperature = {ACTION: c.action_temperature, FUTURE: c.temperature}
        self.place_action = nn.Parameter(0.5 * torch.randn(self.length[ACTION], D))
        self.place_future = nn.Parameter(0.5 * torch.randn(self.length[FUTURE], D))
        drawn = lambda q: q.wants_action and c.action_temperature or q.wants_future and c.temperature  # noqa: E731
        self.deterministic = frozenset(q for q in Query if not drawn(q))

    @property
    def vocabulary(self) -> Vocabulary:
        return self.context.text

    def stages(self) -> tuple[Stage, ...]:
        share = self.config.codec_share
        return (
            Stage("codec", share, ("future",), self.config.codec_lr),
            Stage("main", 1 - share, ("context", "place", "trunk")),
        )

    def bins(self, action_BAa: Tensor) -> Tensor:
        """Actions' codes (B, A, a), one for each step and dimension; what is out of reach is clipped."""
        return to_digits(self.normalizer.encode("action", action_BAa) / self.config.reach, self.config.bins)

    def actions(self, bins_BAa: Tensor) -> Tensor:
        """The inverse, up to rounding and clipping: (B, A, a) in robot units. Between the bins lie means of several."""
        return self.normalizer.decode("action", from_digits(bins_BAa, self.config.bins) * self.config.reach)

    def diagnostics(self, batch: Batch, stage: str) -> dict[str, float]:
        """The share of action numbers out of reach, and how many image tokens are in use (their perplexity)."""
        far = self.normalizer.encode("action", batch.action).abs() > self.config.reach
        count = self.future.encode(batch)[batch.frame_valid].flatten().bincount().float()
        codes = torch.special.entr(count / count.sum().clamp(min=1)).sum().exp()
        return {"clipped": masked_mean(far.float(), batch.action_mask()).mean().item(), "codes": codes.item()}

    # -------------------------------------------------------------------------------------------------------- who sees whom

    def attention_layout(self, first: str = "") -> tuple[list[Segment], Tensor]:
        """Block by block, where `first` (ACTION or FUTURE; the joint query's unless given) is written before the other."""
        first = first or {"cot": FUTURE, "world": ACTION}[self.config.joint]
        segments, blocks = [Segment(CONTEXT, self.at[ACTION])], [(CONTEXT, 0)]
        for name, (count, size) in self.shape.items():
            segments += [Segment(name, self.num_markers + size)] * count
            blocks += [(name, i) for i in range(count)]

        def sees(q: str, i: int, k: str, j: int) -> bool:
            if k == CONTEXT or q == CONTEXT:
                return k == CONTEXT
            if q != k:
                return k == first
            return not self.num_markers or i == j or j < i and not (q == ACTION and self.config.action_mask)

        return segments, torch.tensor([[sees(*q, *k) for k in blocks] for q in blocks])

    def _mask(self, first: str) -> Tensor:
        """The same for tokens (L, L): inside a block, what is written one by one sees what was written before it."""
        segments, seen_SS = self.attention_layout(first)
        return expand(seen_SS, segments) & (in_order(segments) if self.num_markers else True)

    # ------------------------------------------------------------------------------------------------------------- training

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        B, device, c = len(batch), batch.obs.device, self.config
        seen = batch.features["codes"].long() if batch.features else self.future.encode(batch)
        codes = {ACTION: self.bins(batch.action), FUTURE: seen}
        valid = {
            ACTION: batch.action_mask(),
            FUTURE: batch.frame_valid.unsqueeze(2).expand_as(codes[FUTURE]),
        }
        frames_first = (torch.rand(B, generator=generator) < c.frames_first).to(device) | ~batch.has_action
        told = valid if self.num_markers else self._shown(valid, frames_first, generator)
        context = self.context(batch, self.normalizer, generator)
        tokens = [context]
        for name in (ACTION, FUTURE):
            ids = self._ids(name, codes[name].where(told[name], UNKNOWN))
            tokens.append(self.vocabulary.table(ids) + self._places(name, context))
        masks = torch.stack([self._mask(ACTION), self._mask(FUTURE)]).to(device)
        y, _ = self.trunk(torch.cat(tokens, 1), masks[frames_first.long()].unsqueeze(1))
        _, y_a, y_z = y.split([t.shape[1] for t in tokens], 1)
        error, asked = {}, {}
        for name, part, smooth in ((ACTION, y_a, c.smooth), (FUTURE, y_z, 0.0)):
            blocks, size = self.shape[name]
            outputs = part.unflatten(1, (blocks, -1))[:, :, :size]
            error[name] = self.vocabulary.surprise(name, outputs, codes[name], smooth)
            asked[name] = valid[name] if self.num_markers else valid[name] & ~told[name]
        later, is_demonstration = frames_first.view(B, 1, 1), batch.is_demonstration.view(B, 1, 1)
        return {
            "policy": masked_mean(error[ACTION], asked[ACTION] & ~later & is_demonstration),
            "action": masked_mean(error[ACTION], asked[ACTION] & later),
            "future": masked_mean(error[FUTURE], asked[FUTURE] & (~later | is_demonstration)),
        }

    def _shown(self, valid: dict[str, Tensor], frames_first: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Which slots are shown: a share of each modality is blank, drawn on the cosine schedule (MaskGIT, arXiv:2202.04200),
        but nothing of the first one in `clean` of the rows, as dynamics and `generate` have it."""
        B, told = len(frames_first), {}
        clean = (torch.rand(B, generator=generator) < self.config.clean).to(frames_first.device)
        for name, known in valid.items():
            share = torch.cos(torch.rand(B, 1, 1, generator=generator) * (math.pi / 2))
            shown = (torch.rand(known.shape, generator=generator) >= share).to(known.device)
            told[name] = known & (shown | (clean & (frames_first == (name == FUTURE))).view(B, 1, 1))
        return told

    def _ids(self, name: str, codes: Tensor) -> Tensor:
        """Codes (B, blocks, size) as ids in the sequence (B, length): each block after its mark, if it has one."""
        words = self.vocabulary
        ids = (codes + words.start[name]).where(codes != UNKNOWN, words.blank)
        return F.pad(ids, (self.num_markers, 0), value=words.begin[name]).flatten(1)

    def _places(self, name: str, context: Tensor) -> Tensor:
        """What is added to tokens (B or 1, length, D): where they stand, and for image tokens the present picture's token of
        the cell whose code is read there, so that the trunk works out what changes."""
        if name == ACTION:
            return self.place_action.unsqueeze(0)
        cells = context[:, : self.future.cells].repeat_interleave(self.config.codes.cell, 1)
        return F.pad(cells, (0, 0, 0, self.num_markers)).repeat(1, self.shape[FUTURE][0], 1) + self.place_future

    # ------------------------------------------------------------------------------------------------------------- sampling

    def denoises(self, query: Query) -> bool:
        return not self.num_markers

    def default_steps(self, query: Query) -> int:
        return self.config.denoising_steps if query.wants_future else self.config.policy_steps

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        cot = query in (Query.VIDEO, Query.INVERSE) or query is Query.JOINT and self.config.joint == "cot"
        order = ((FUTURE, ACTION) if cot else (ACTION, FUTURE))[: 1 if query in (Query.POLICY, Query.VIDEO) else 2]
        context, mask_LL = self.context(batch, self.normalizer), self._mask(order[0]).to(batch.obs.device)
        place = torch.arange(len(mask_LL), device=mask_LL.device)
        _, read = Read(self.trunk, mask_LL, place[:0]).on(context, place[: context.shape[1]])
        # Drawn in one order for every query, so that queries with one seed share it.
        uniform = {n: torch.stack([torch.rand(L, generator=g) for g in generators]) for n, L in self.length.items()}
        out = {}
        for name in order:
            base, u, more = self._places(name, context), uniform[name].to(place.device), name != order[-1]
            if query in (Query.FORWARD, Query.INVERSE) and more:  # it is given
                ids = self._ids(name, self.bins(batch.action) if name == ACTION else self.future.encode(batch))
                _, read = read.on(self.vocabulary.table(ids) + base, self.at[name] + place[: self.length[name]])
            elif self.num_markers:
                out[name], read = self._write(name, u, base, read, more)
            else:
                rounds = min(steps, self.config.policy_steps) if query is Query.JOINT and name == ACTION else steps
                out[name], read = self._fill(name, u, base, read, more, rounds)
        said = {n: x.unflatten(1, (self.shape[n][0], -1))[:, :, self.num_markers :] for n, x in out.items()}
        return (
            self.actions(said[ACTION]) if query.wants_action else None,
            self.future.decode(said[FUTURE].long(), batch.obs) if query.wants_future else None,
        )

    def _write(self, name: str, u: Tensor, base: Tensor, read: Read, more: bool) -> tuple[Tensor, Read]:
        """What a modality says, token by token (B, length), and what was read by then: its last token only if there is more."""
        (blocks, size), words = self.shape[name], self.vocabulary
        ids, said = self._ids(name, torch.full((len(u), blocks, size), UNKNOWN, device=u.device)), torch.zeros_like(u)
        place = torch.arange(self.length[name], device=u.device).view(blocks, 1 + size)
        runs = list(place.T if name == ACTION and self.config.action_mask else place.reshape(-1, 1))
        for i, at in enumerate(runs if more else runs[:-1]):
            y, read = read.on(words.table(ids[:, at]) + base[:, at], self.at[name] + at)
            if (i + 1) % (1 + size):  # not the last of a block
                code, said[:, at + 1], _ = words.choose(name, y, u[:, at], self.temperature[name], name == ACTION)
                ids[:, at + 1] = code + words.start[name]
        return said, read

    def _fill(self, name: str, u: Tensor, base: Tensor, read: Read, more: bool, rounds: int) -> tuple[Tensor, Read]:
        """The same in rounds, the surest slots first: as many stay blank as the cosine schedule says."""
        L, words, said = self.length[name], self.vocabulary, torch.zeros_like(u)
        ids, at = torch.full(u.shape, words.blank, device=u.device), self.at[name] + torch.arange(L, device=u.device)
        for k in range(rounds):
            y, _ = read.on(words.table(ids) + base, at)
            code, mean, sure = words.choose(name, y, u, self.temperature[name], name == ACTION)
            sure = sure.masked_fill(ids != words.blank, 2.0)  # what is written stays
            blank = math.floor(L * math.cos(math.pi / 2 * (k + 1) / rounds))
            new = (torch.zeros_like(sure).scatter(1, sure.topk(L - blank).indices, 1.0) > 0) & (sure < 2)
            ids, said = (code + words.start[name]).where(new, ids), mean.where(new, said)
        return said, read.on(words.table(ids) + base, at)[1] if more else read
