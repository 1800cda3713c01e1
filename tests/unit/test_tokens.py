"""Inputs to tokens: canvas, text, normalisation, the frame codec, the pretrained text encoder."""

from __future__ import annotations

import pytest
import torch

from wamkit.nn.autoencoders.frame_codec import FrameCodec
from wamkit.nn.encoders import TextConfig, VisionTeacher, build_text
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.tokens import TextTable, canvas, ngram_ids, uncanvas
from wamkit.types import WamkitError


def test_canvas_and_back_is_exact():
    x = torch.randint(0, 256, (2, 3, 4, 3, 8, 8), dtype=torch.uint8)
    y = canvas(x)
    assert y.shape == (2, 3, 3, 8, 32) and y.min() >= -1 and y.max() <= 1
    assert torch.equal(uncanvas(y, 4), x)
    assert torch.equal(y[:, :, :, :, 8:16], canvas(x[:, :, 1:2]))  # the second view stands second


def test_words_and_their_order_matter():
    table = TextTable(16)
    rows = table(["open the drawer", "Open the drawer!", "close the drawer", "red on blue", "blue on red"])
    assert torch.equal(rows[0], rows[1])
    assert not torch.allclose(rows[0], rows[2]) and not torch.allclose(rows[3], rows[4])
    alone = table(["close the drawer"])
    torch.testing.assert_close(alone[0], rows[2])


def test_left_out_words_and_unknown_words_do_not_matter():
    """With dropout, training sees parts of instructions, and words that it never saw are as if they were not there."""
    torch.manual_seed(0)
    table = TextTable(16, dropout=0.5)
    texts = ["open the drawer", "close the window"]
    generator = torch.Generator().manual_seed(0)
    parts = torch.cat([table(["open the drawer"], generator) for _ in range(50)])
    assert torch.equal(parts, table.project.bias.expand(50, 1, 16))  # nothing is learned yet
    optimizer = torch.optim.AdamW(table.parameters(), 0.1)
    for _ in range(30):
        optimizer.zero_grad()
        (table(texts, generator) - torch.tensor([1.0, -1.0]).view(2, 1, 1)).square().mean().backward()
        optimizer.step()
    known = set(ngram_ids(texts[0], 4096)) | set(ngram_ids(texts[1], 4096))
    assert set(torch.where(table.table.weight.any(-1))[0].tolist()) == known
    parts = torch.cat([table(["open the drawer"], generator) for _ in range(50)])
    assert 5 < len(parts.unique(dim=0)) <= 32  # 2^5 subsets
    torch.testing.assert_close(table(["kindly open the drawer now"]), table(["open the drawer"]))
    assert torch.equal(table(["ouvre"]), table([""]))
    first, second = table(texts).mean((1, 2))
    assert first > 0.5 and second < -0.5


def test_hashes_do_not_depend_on_the_process():
    assert ngram_ids("open the drawer", 4096) == (932, 3558, 3585, 346, 1737)


def test_normaliser_round_trip_and_strictness():
    n = Normalizer({"action": (torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]))})
    x = torch.tensor([[1.5, 2.0], [0.0, 2.0]])
    assert n.encode("action", x).tolist() == [[1.0, 0.0], [-2.0, 0.0]]  # a constant dimension maps to 0
    torch.testing.assert_close(n.decode("action", n.encode("action", x)), x)
    with pytest.raises(WamkitError, match="no normalisation statistics for 'proprio' .*wamkit train"):
        n.encode("proprio", x)


def test_codec_starts_as_a_copy_and_has_unit_latents():
    torch.manual_seed(0)
    codec = FrameCodec((2, 4), channels=4)
    now, future = torch.rand(3, 3, 32, 64) * 2 - 1, torch.rand(3, 3, 32, 64) * 2 - 1
    z = codec.encode(future.unsqueeze(1), now)
    assert z.shape == (3, 1, 8, 16)
    torch.testing.assert_close(z.mean(-1), torch.zeros(3, 1, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(-1, unbiased=False), torch.ones(3, 1, 8), atol=1e-2, rtol=0)
    copy = codec.decode(z, now).squeeze(1)
    assert (copy - now).square().mean() < 0.1 * (future - now).square().mean()


def test_a_pretrained_encoder_is_loaded_from_a_path(tmp_path):
    """The real loading code, on a tiny randomly initialised model of the real classes."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "open", "close", "the", "drawer"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    text = build_text(TextConfig("pretrained", model=str(tmp_path)), 8)
    rows = text(["open the drawer", "close the drawer", "open the drawer"])
    assert rows.shape == (3, 1, 8) and torch.equal(rows[0], rows[2]) and not torch.allclose(rows[0], rows[1])
    torch.testing.assert_close(text(["close the drawer"])[0], rows[1], atol=1e-5, rtol=1e-5)
    assert [n for n, _ in text.named_parameters()] == ["project.weight", "project.bias"]  # the encoder stays frozen
    rows.sum().backward()
    with pytest.raises(WamkitError, match="needs text.model"):
        build_text(TextConfig("pretrained"), 8)


def test_a_pretrained_vision_teacher_is_loaded_from_a_path(tmp_path):
    """Real loading code on a tiny random DINOv2: patches land in the cell that shows them, and weights stay out of
    ours.
    """
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=7, use_swiglu_ffn=False
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    transformers.BitImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.2, 0.3]).save_pretrained(tmp_path)
    teacher = VisionTeacher(str(tmp_path), (2, 4))
    assert teacher.channels == 12 and not list(teacher.parameters()) and not teacher.state_dict()
    pictures = torch.rand(3, 3, 32, 64) * 2 - 1
    tokens = teacher(pictures)
    assert tokens.shape == (3, 8, 12) and torch.isfinite(tokens).all() and not tokens.requires_grad
    moved = pictures.clone()
    moved[:, :, :16, :16] = -moved[:, :, :16, :16]  # the first cell of 2x4
    assert (teacher(moved) - tokens).abs().mean((0, 2)).argmax() == 0
    with pytest.raises(WamkitError, match="needs model.pretrained"):
        VisionTeacher("", (2, 4))
