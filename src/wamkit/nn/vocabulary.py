"""One vocabulary for words and several kinds of codes: an embedding table, a head, and how a token is learned and chosen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from wamkit.nn.tokens import ngram_ids


def to_digits(x: Tensor, levels: int) -> Tensor:
    """The nearest of `levels` values, evenly spaced over [-1, 1], as 0 .. levels - 1; what lies outside is clipped."""
    return ((x.clamp(-1, 1) + 1) * ((levels - 1) / 2)).round().long()


def from_digits(digits: Tensor, levels: int) -> Tensor:
    """The inverse of `to_digits`."""
    return digits * (2 / (levels - 1)) - 1


def join_digits(digits: Int[Tensor, "... n"], levels: int) -> Tensor:
    """n digits as one code below levels ** n, the first digit counting least."""
    return (digits * levels ** torch.arange(digits.shape[-1], device=digits.device)).sum(-1)


def split_digits(codes: Tensor, levels: int, n: int) -> Int[Tensor, "... n"]:
    """The inverse of `join_digits`."""
    return codes.unsqueeze(-1) // levels ** torch.arange(n, device=codes.device) % levels


class Vocabulary(nn.Module):
    """Every token has one id: first the words, then the codes of each kind, then the marks: one that begins a block of a kind,
    and `blank`, for what is not known.

    words: ids that words and word pairs are hashed to.   kinds: kind -> how many codes it has.
    As a module it embeds instructions, (B texts) -> (B, 1, D): the mean of their words and word pairs.
    """

    def __init__(self, width: int, words: int, kinds: Mapping[str, int]):
        super().__init__()
        self.words, self.size = words, dict(kinds)
        self.start = {k: words + sum(list(kinds.values())[:i]) for i, k in enumerate(kinds)}
        codes = words + sum(kinds.values())
        self.begin = {k: codes + i for i, k in enumerate(kinds)}
        self.blank = codes + len(kinds)
        self.table, self.head = nn.Embedding(self.blank + 1, width), nn.Linear(width, self.blank + 1)
        nn.init.normal_(self.table.weight, std=0.5)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, texts: list[str]) -> Float[Tensor, "B 1 D"]:
        ids = [torch.tensor(ngram_ids(t, self.words)) for t in texts]
        return torch.stack([self.table(i.to(self.table.weight.device)).mean(0, keepdim=True) for i in ids])

    def logits(self, kind: str, y: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Trunk outputs to logits over the codes of one kind, in float32: where a token stands says which kind it is."""
        rows = slice(self.start[kind], self.start[kind] + self.size[kind])
        return F.linear(y, self.head.weight[rows], self.head.bias[rows]).float()

    def surprise(self, kind: str, y: Float[Tensor, "... D"], codes: Tensor, smooth: float = 0.0) -> Tensor:
        """How badly the trunk outputs foretell `codes` (...): the cross-entropy of each, in nats.

        smooth > 0 is for codes whose neighbours are alike: the divergence from a Gaussian of that deviation, in codes,
        around each (HL-Gauss, arXiv:2403.03950), which is 0 where foretold exactly.
        """
        logits = self.logits(kind, y)
        if not smooth:
            return F.cross_entropy(logits.flatten(0, -2), codes.flatten(), reduction="none").view(codes.shape)
        distance = torch.arange(self.size[kind], device=codes.device) - codes.unsqueeze(-1)
        p = torch.softmax(-0.5 * (distance / smooth).square(), -1)
        return F.kl_div(F.log_softmax(logits, -1), p, reduction="none").sum(-1)

    def choose(
        self, kind: str, y: Float[Tensor, "... D"], u: Tensor, temperature: float, mean: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes by trunk outputs and uniform draws `u` (...), what they say, and how probable each is.

        At temperature 0 nothing is drawn: the likeliest code, or with `mean`, for codes in order, the one nearest to their
        mean; then the mean itself, between the codes, is what it says.
        """
        p = torch.softmax(self.logits(kind, y) / (temperature or 1), -1)
        if temperature:
            sums = p.cumsum(-1)
            said = (sums < u.unsqueeze(-1) * sums[..., -1:]).sum(-1).clamp(max=p.shape[-1] - 1).float()
        elif mean:
            said = p @ torch.arange(p.shape[-1], device=p.device, dtype=p.dtype)
        else:
            said = p.argmax(-1).float()
        codes = said.round().long()
        return codes, said, p.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
