"""Reading the instruction: a small table learned from scratch, or a pretrained encoder through `transformers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.nn.tokens import TextTable
from wamkit.types import WamkitError


@dataclass(frozen=True)
class TextConfig:
    """How instructions become a token."""

    kind: Literal["table", "pretrained"] = "table"
    buckets: int = 4096
    """Rows of the table that hashed words and word pairs share."""
    model: str = ""
    """For `pretrained`: a local path or a hub id of any encoder that `transformers.AutoModel` loads."""


class PretrainedText(nn.Module):
    """A frozen pretrained encoder, averaged over the instruction's tokens and projected: (B, 1, D).

    The encoder is not part of the checkpoint (it is large and does not learn): it is loaded again from `model`.
    """

    def __init__(self, model: str, width: int):
        super().__init__()
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as e:
            raise WamkitError(
                "text.kind=pretrained needs the package transformers: pip install 'wamkit[pretrained]'"
            ) from e
        if not model:
            raise WamkitError("text.kind=pretrained needs text.model, a local path or a hub id")
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        encoder = AutoModel.from_pretrained(model).eval().requires_grad_(False)
        # Kept out of the module's parameters on purpose, see the docstring.
        object.__setattr__(
            self, "encoder", getattr(encoder, "encoder", encoder) if encoder.config.is_encoder_decoder else encoder
        )
        self.project = nn.Linear(encoder.config.hidden_size, width)

    def forward(self, texts: list[str]) -> Float[Tensor, "B 1 D"]:
        device = self.project.weight.device
        self.encoder.to(device)
        tokens = self.tokenizer(sorted(set(texts)), padding=True, return_tensors="pt").to(device)
        with torch.no_grad():
            hidden = self.encoder(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        row = {t: i for i, t in enumerate(sorted(set(texts)))}
        return self.project(mean[[row[t] for t in texts]]).unsqueeze(1)


def build_text(config: TextConfig, width: int) -> nn.Module:
    """The text encoder that `config` asks for; maps a list of B instructions to (B, 1, width)."""
    return TextTable(width, config.buckets) if config.kind == "table" else PretrainedText(config.model, width)
