"""`discrete`: future frames and actions are tokens of one vocabulary, written one after the other.

Stands for the leaf joint / autoregressive / unified-discrete (WorldVLA, arXiv:2506.21539; CoT-VLA, arXiv:2503.22020).
One table embeds all tokens and one head predicts the next. A sequence is [context | a block an action step | a block a
future frame]. A mask, drawn for each row, decides which modality is written first: actions first trains the policy and
forward dynamics (WorldVLA's action and world model), frames first trains video and the actions that explain it
(CoT-VLA's visual chain of thought; inverse dynamics). A block begins with a marker, and each token is predicted at the
place of the one before it. By WorldVLA's action mask a step ignores the actions of other steps, so that all steps are
written at once, a dimension a pass.

`decode = "parallel"` is mask diffusion instead (UD-VLA, arXiv:2511.01718): a random share of slots is blank, slots of
one modality all see each other, and sampling fills in the most certain first, in rounds on a cosine schedule.

Departures from the reference code:
* The present comes in as soft tokens of the shared encoder, as in every family here: rounding the context costs
  precision, and it is never predicted. Codes of the future are made given the present (`nn.autoencoders`). The
  instruction is one token, the mean of its words' rows in the table.
* Logits span the ids that can stand at a place, not the whole vocabulary. Losses are means over valid tokens:
  WorldVLA's image weight is a class weight, which cancels in batches of images alone.
* Neighbouring bins are alike: targets of actions are Gaussians over bins (HL-Gauss), and at temperature 0 the answer is
  the bin nearest to the mean. Actions outside the bins are clipped, and counted (`diagnostics`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy, codec_stages
from wamkit.nn import BACKBONES, ContextTokens, FutureCodes, ImageTokens, Normalizer, Tokens, masked_mean
from wamkit.nn.attention_mask import ACTION, CONTEXT, FUTURE, Segment, expand, in_order
from wamkit.nn.backbones.transformer import Read
from wamkit.nn.family_options import DiscreteConfig
from wamkit.nn.tokens import image_positions, step_positions, view_cells
from wamkit.nn.vocabulary import Vocabulary, from_digits, to_digits
from wamkit.types import Batch, Query, Spec

UNKNOWN = -1
"""In place of a code that is not written yet, or not given."""


@FAMILIES.register("discrete")
class Discrete(Family):
    """Frames and actions as tokens of one vocabulary."""

    name = "discrete"
    taxonomy = Taxonomy(
        "joint / autoregressive / unified-discrete",
        "discrete codes",
        "one sequence, in two orders",
        "next or masked tokens",
        "joint",
    )
    queries = frozenset(Query)
    Config = DiscreteConfig

    def __init__(self, config: DiscreteConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        c, D = config, config.width
        vocabulary = Vocabulary(D, c.words, {FUTURE: c.codes.size, ACTION: c.bins})
        self.context = ContextTokens(D, spec, vocabulary, c.proprio_noise)
        self.future = FutureCodes(spec, c.codes)
        self.trunk = BACKBONES.get(c.backbone.name)(D, c.depth, c.heads)
        self.num_markers = 1 if c.decode == "ar" else 0  # at the start of a block
        self.shape = {ACTION: (spec.chunk, spec.action_dim), FUTURE: (len(spec.frame_offsets), self.future.length)}
        self.length = {n: blocks * (self.num_markers + size) for n, (blocks, size) in self.shape.items()}
        self.at = {ACTION: (K := self.context.length), FUTURE: K + self.length[ACTION]}  # their first places
        self.temperature = {ACTION: c.action_temperature, FUTURE: c.temperature}
        self.place_action = nn.Parameter(0.5 * torch.randn(self.length[ACTION], D))
        self.place_future = nn.Parameter(0.5 * torch.randn(self.length[FUTURE], D))
        steps = step_positions([t for t in range(spec.chunk) for _ in range(self.num_markers + spec.action_dim)])
        self.register_buffer("at_action", steps, persistent=False)
        self.register_buffer("at_future", self._image_places(), persistent=False)
        drawn = lambda q: q.wants_action and c.action_temperature or q.wants_future and c.temperature  # noqa: E731
        self.deterministic = frozenset(q for q in Query if not drawn(q))
        self.declare(self.trunk, codec=self.future)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.context.text

    def stages(self) -> tuple[Stage, ...]:
        return codec_stages(self, "context", "place", "trunk", codec="future")

    def _image_places(self) -> Tensor:
        """Positions of the future's tokens (see `Tokens`): a code has its cell's, a marker none in the image."""
        frames = []
        for t in self.spec.frame_offsets:
            cells = image_positions(self.spec, ImageTokens.stride, t).repeat_interleave(self.config.codes.cell, 0)
            frames += [step_positions([t] * self.num_markers).view(-1, 3), cells]
        return torch.cat(frames)

    def bins(self, action_BAa: Tensor) -> Tensor:
        """Actions' codes (B, A, a), one for each step and dimension; values out of reach are clipped."""
        return to_digits(self.normalizer.encode("action", action_BAa) / self.config.reach, self.config.bins)

    def actions(self, bins_BAa: Tensor) -> Tensor:
        """The inverse, up to rounding and clipping: (B, A, a) in robot units. Means of bins lie between them."""
        return self.normalizer.decode("action", from_digits(bins_BAa, self.config.bins) * self.config.reach)

    def diagnostics(self, batch: Batch, stage: str) -> dict[str, float]:
        """Share of action values out of reach, and the number of image tokens in use (their perplexity)."""
        far = self.normalizer.encode("action", batch.action).abs() > self.config.reach
        shown = batch.frame_valid.unsqueeze(2) & self._shown(batch).unsqueeze(1)
        count = self.future.encode(batch)[shown].bincount().float()
        codes = torch.special.entr(count / count.sum().clamp(min=1)).sum().exp()
        return {"clipped": masked_mean(far.float(), batch.action_mask()).mean().item(), "codes": codes.item()}

    def attention_layout(self, first: str = "") -> tuple[list[Segment], Tensor]:
        """Block by block. first: the modality that is written before the other; by default the joint query's."""
        first = first or {"cot": FUTURE, "world": ACTION}[self.config.joint]
        segments, blocks = [Segment(CONTEXT, self.at[ACTION])], [(CONTEXT, 0)]
        for name, (count, size) in self.shape.items():
            segments += [Segment(name, self.num_markers + size)] * count
            blocks += [(name, i) for i in range(count)]

        def sees(q: str, i: int, k: str, j: int) -> bool:
            if CONTEXT in (q, k):
                return k == CONTEXT
            if q != k:
                return k == first
            return not self.num_markers or i == j or j < i and not (q == ACTION and self.config.action_mask)

        return segments, torch.tensor([[sees(*q, *k) for k in blocks] for q in blocks])

    def _mask(self, first: str) -> Tensor:
        """The same for tokens (L, L): inside a block, a token that is written one by one sees the ones before it."""
        segments, seen_SS = self.attention_layout(first)
        return expand(seen_SS, segments) & (in_order(segments) if self.num_markers else True)

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        B, device, c = len(batch), batch.obs.device, self.config
        seen = batch.features["codes"].long() if batch.features else self.future.encode(batch)
        codes = {ACTION: self.bins(batch.action), FUTURE: seen}
        valid = {
            ACTION: batch.action_mask(),
            FUTURE: batch.frame_valid.unsqueeze(2) & self._shown(batch).unsqueeze(1),
        }
        frames_first = (torch.rand(B, generator=generator) < c.frames_first).to(device) | ~batch.has_action
        visible = valid if self.num_markers else self._visible(valid, frames_first, generator)
        context = self.context(batch, self.normalizer, generator)
        parts = [*context]
        for name in (ACTION, FUTURE):
            ids = self._ids(name, codes[name].where(visible[name], UNKNOWN))
            parts.append(self._tokens(name, ids, self._places(name, context)))
        masks = torch.stack([self._mask(ACTION), self._mask(FUTURE)]).to(device)
        y, _ = self.trunk(parts, masks[frames_first.long()].unsqueeze(1))
        error, asked = {}, {}
        for name, part, smooth in ((ACTION, y[-2], c.smooth), (FUTURE, y[-1], 0.0)):
            blocks, size = self.shape[name]
            outputs = part.unflatten(1, (blocks, -1))[:, :, :size]
            error[name] = self.vocabulary.loss(name, outputs, codes[name], smooth)
            asked[name] = valid[name] if self.num_markers else valid[name] & ~visible[name]
        later, is_demonstration = frames_first.view(B, 1, 1), batch.is_demonstration.view(B, 1, 1)
        return {
            "policy": masked_mean(error[ACTION], asked[ACTION] & ~later & is_demonstration),
            "action": masked_mean(error[ACTION], asked[ACTION] & later),
            "future": masked_mean(error[FUTURE], asked[FUTURE] & (~later | is_demonstration)),
        }

    def _shown(self, batch: Batch) -> Tensor:
        """True for the codes of a frame (B, n) in views that the row has."""
        cells = view_cells(batch, self.future.latents.grid).expand(-1, self.future.cells)
        return cells.repeat_interleave(self.config.codes.cell, 1)

    def _visible(self, valid: dict[str, Tensor], frames_first: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """True for slots that are visible: a share of each modality is blank, drawn on the cosine schedule (MaskGIT,
        arXiv:2202.04200), but nothing of the first one in `clean` of the rows, as dynamics and `generate` have it."""
        B, visible = len(frames_first), {}
        clean = (torch.rand(B, generator=generator) < self.config.clean).to(frames_first.device)
        for name, known in valid.items():
            share = torch.cos(torch.rand(B, 1, 1, generator=generator) * (math.pi / 2))
            shown = (torch.rand(known.shape, generator=generator) >= share).to(known.device)
            visible[name] = known & (shown | (clean & (frames_first == (name == FUTURE))).view(B, 1, 1))
        return visible

    def _ids(self, name: str, codes: Tensor) -> Tensor:
        """Codes (B, blocks, size) as ids in the sequence (B, length): each block after its marker, if it has one."""
        words = self.vocabulary
        ids = (codes + words.start[name]).where(codes != UNKNOWN, words.blank)
        return F.pad(ids, (self.num_markers, 0), value=words.begin[name]).flatten(1)

    def _tokens(self, name: str, ids: Tensor, places: Tensor, at: Tensor | slice = slice(None)) -> Tokens:
        """Ids (B, n), at the indices `at` of the modality, as tokens. places: of the whole modality, from `_places`."""
        position = self.at_action if name == ACTION else self.at_future
        return Tokens(self.vocabulary.table(ids) + places[:, at], name, position[at])

    def _places(self, name: str, context: list[Tokens]) -> Tensor:
        """Embeddings that are added to a modality's tokens (B or 1, length, D): their place, and for image tokens the
        present image's token of the cell whose code is read there, so that the backbone predicts the change."""
        if name == ACTION:
            return self.place_action.unsqueeze(0)
        cells = self.future.latents.present(context).repeat_interleave(self.config.codes.cell, 1)
        return F.pad(cells, (0, 0, 0, self.num_markers)).repeat(1, self.shape[FUTURE][0], 1) + self.place_future

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
        index = torch.arange(len(mask_LL), device=mask_LL.device)
        _, read = Read(self.trunk, mask_LL, index[:0]).on(context, index[: self.context.length])
        # Drawn in one order for every query, so that queries with one seed share it.
        uniform = {n: torch.stack([torch.rand(L, generator=g) for g in generators]) for n, L in self.length.items()}
        out = {}
        for name in order:
            places, u, more = self._places(name, context), uniform[name].to(index.device), name != order[-1]
            if query in (Query.FORWARD, Query.INVERSE) and more:  # it is given
                ids = self._ids(name, self.bins(batch.action) if name == ACTION else self.future.encode(batch))
                _, read = read.on([self._tokens(name, ids, places)], self.at[name] + index[: self.length[name]])
            elif self.num_markers:
                out[name], read = self._write(name, u, places, read, more)
            else:
                rounds = min(steps, self.config.policy_steps) if query is Query.JOINT and name == ACTION else steps
                out[name], read = self._fill(name, u, places, read, more, rounds)
        values = {n: x.unflatten(1, (self.shape[n][0], -1))[:, :, self.num_markers :] for n, x in out.items()}
        return (
            self.actions(values[ACTION]) if query.wants_action else None,
            self.future.decode(values[FUTURE].long(), batch.obs) if query.wants_future else None,
        )

    def _write(self, name: str, u: Tensor, places: Tensor, read: Read, more: bool) -> tuple[Tensor, Read]:
        """A modality's values, token by token (B, length), and the state after it: the last token is read only if there
        is more to write."""
        (blocks, size), words = self.shape[name], self.vocabulary
        ids = self._ids(name, torch.full((len(u), blocks, size), UNKNOWN, device=u.device))
        values, index = torch.zeros_like(u), torch.arange(self.length[name], device=u.device).view(blocks, 1 + size)
        runs = list(index.T if name == ACTION and self.config.action_mask else index.reshape(-1, 1))
        for i, at in enumerate(runs if more else runs[:-1]):
            y, read = read.on([self._tokens(name, ids[:, at], places, at)], self.at[name] + at)
            if (i + 1) % (1 + size):  # not the last of a block
                code, values[:, at + 1], _ = words.choose(name, y, u[:, at], self.temperature[name], name == ACTION)
                ids[:, at + 1] = code + words.start[name]
        return values, read

    def _fill(self, name: str, u: Tensor, places: Tensor, read: Read, more: bool, rounds: int) -> tuple[Tensor, Read]:
        """The same in rounds, the most certain slots first: the cosine schedule says how many stay blank."""
        L, words, values = self.length[name], self.vocabulary, torch.zeros_like(u)
        ids, at = torch.full(u.shape, words.blank, device=u.device), self.at[name] + torch.arange(L, device=u.device)
        for k in range(rounds):
            y, _ = read.on([self._tokens(name, ids, places)], at)
            code, mean, sure = words.choose(name, y, u, self.temperature[name], name == ACTION)
            sure = sure.masked_fill(ids != words.blank, 2.0)  # a written slot stays
            blank = math.floor(L * math.cos(math.pi / 2 * (k + 1) / rounds))
            new = (torch.zeros_like(sure).scatter(1, sure.topk(L - blank).indices, 1.0) > 0) & (sure < 2)
            ids, values = (code + words.start[name]).where(new, ids), mean.where(new, values)
        return values, read.on([self._tokens(name, ids, places)], at)[1] if more else read
