"""One vocabulary for words and several kinds of codes: an embedding table, a head, a loss and a choice of tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from wamkit.nn.tokens import check_finite, ngram_ids


def to_digits(x: Tensor, levels: int) -> Tensor:
    """The nearest of `levels` values, evenly spaced over [-1, 1], as 0 .. levels - 1; values outside are clipped.

    Raises NotFinite for NaN and infinities, which would become any code.
    """
    check_finite(x, "codes")
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
    """Ids of all tokens: the words, then the codes of each kind, then the markers: one that begins a block of each
    kind, and `blank`, in place of a code that is not written.

    words: number of ids that words and word pairs are hashed to.
    kinds: kind -> number of its codes.

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

    def forward(self, texts: list[str], generator: torch.Generator | None = None) -> Float[Tensor, "B 1 D"]:
        """Embeddings of instructions; training leaves out none of their words."""
        ids = [torch.tensor(ngram_ids(t, self.words)) for t in texts]
        return torch.stack([self.table(i.to(self.table.weight.device)).mean(0, keepdim=True) for i in ids])

    def logits(self, kind: str, y: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Outputs of the backbone to logits over the codes of one kind, in float32; a token's place determines its
        kind."""
        rows = slice(self.start[kind], self.start[kind] + self.size[kind])
        return F.linear(y, self.head.weight[rows], self.head.bias[rows]).float()

    def loss(self, kind: str, y: Float[Tensor, "... D"], codes: Tensor, smooth: float = 0.0) -> Tensor:
        """Cross-entropy of `codes` (...) under the backbone's outputs, in nats.

        smooth > 0 is for codes whose neighbours are alike: the divergence from a Gaussian of that deviation, in codes,
        around each (HL-Gauss, arXiv:2403.03950), which is 0 where the prediction is exact.
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
        """Codes from outputs of the backbone and uniform draws `u` (...), their values, and their probabilities.

        At temperature 0 nothing is drawn: the likeliest code, or with `mean`, for ordered codes, the one nearest to
        their mean; its value is then the mean itself, between the codes. Raises NotFinite where the outputs are.
        """
        logits = self.logits(kind, y)
        check_finite(logits, f"codes of the {kind}")
        p = torch.softmax(logits / (temperature or 1), -1)
        if temperature:
            sums = p.cumsum(-1)
            value = (sums < u.unsqueeze(-1) * sums[..., -1:]).sum(-1).clamp(max=p.shape[-1] - 1).float()
        elif mean:
            value = p @ torch.arange(p.shape[-1], device=p.device, dtype=p.dtype)
        else:
            value = p.argmax(-1).float()
        codes = value.round().long()
        return codes, value, p.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
