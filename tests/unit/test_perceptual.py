"""LPIPS, DINOv2, VideoMAE and I3D from files of the real layout with small random weights: known answers, formulas, and
refusals.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from wamkit.eval.metrics.perceptual import I3D, LPIPS, Dinov2, VideoMAE, clip_features
from wamkit.eval.metrics.video_distribution import frechet_distance, gaussian_frechet, polynomial_mmd
from wamkit.eval.suites.pretrained_features import encoder_table
from wamkit.types import EvaluationError, WamkitError

# State dicts of torchvision and of the lpips package: index, outputs, inputs and kernel of each convolution, and widths
# of the compared layers.
ALEX = (
    [(0, 64, 3, 11), (3, 192, 64, 5), (6, 384, 192, 3), (8, 256, 384, 3), (10, 256, 256, 3)],
    [64, 192, 384, 256, 256],
)
VGG_INDEX = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
VGG_WIDTH = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
VGG = [(i, w, v, 3) for i, w, v in zip(VGG_INDEX, VGG_WIDTH, [3, *VGG_WIDTH], strict=False)], [64, 128, 256, 512, 512]


def weights(layout, seed=0):
    generator = torch.Generator().manual_seed(seed)
    trunk = {"classifier.1.weight": torch.zeros(2, 2)}
    for i, out, into, kernel in layout[0]:
        trunk[f"features.{i}.weight"] = torch.randn(out, into, kernel, kernel, generator=generator) / math.sqrt(
            into * kernel**2 / 2
        )
        trunk[f"features.{i}.bias"] = 0.1 * torch.randn(out, generator=generator)
    heads = {f"lin{k}.model.1.weight": torch.rand(1, w, 1, 1, generator=generator) for k, w in enumerate(layout[1])}
    return trunk, heads


def saved(folder, trunk, heads):
    torch.save(trunk, folder / "trunk.pth")
    torch.save(heads, folder / "heads.pth")
    return folder / "trunk.pth", folder / "heads.pth"


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def alex(tmp_path_factory):
    return LPIPS(*saved(tmp_path_factory.mktemp("alex"), *weights(ALEX)))


def by_hand(trunk, heads, x, y, stride, pool, pooled_after, taps):
    """The paper's formula, a layer at a time, straight from the state dicts."""
    total, tap = 0.0, 0
    maps = [
        (2 * p - 1 - torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        / torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        for p in (x, y)
    ]
    for k, i in enumerate(
        sorted(int(name.split(".")[1]) for name in trunk if name.startswith("features") and name.endswith("weight"))
    ):
        w, b = trunk[f"features.{i}.weight"], trunk[f"features.{i}.bias"]
        padding = {11: 2, 5: 2, 3: 1}[w.shape[-1]]
        maps = [F.relu(F.conv2d(m[None], w, b, stride=stride if i == 0 else 1, padding=padding))[0] for m in maps]
        if k in taps:
            a, c = (m / m.norm(dim=0) for m in maps)
            total += float(
                torch.einsum(
                    "chw,c->hw", (a.nan_to_num() - c.nan_to_num()) ** 2, heads[f"lin{tap}.model.1.weight"].flatten()
                ).mean()
            )
            tap += 1
        if k in pooled_after:
            maps = [F.max_pool2d(m[None], pool, 2)[0] for m in maps]
    return total


def test_lpips_is_its_formula(alex, tmp_path):
    x, y = images(2, 3, 3, 64, 64), images(2, 3, 3, 64, 64, seed=1)
    found = alex(x, y)
    assert found.shape == (2, 3) and (found > 0).all()
    theirs = by_hand(*weights(ALEX), x[1, 2], y[1, 2], 4, 3, (0, 1), range(5))
    assert float(found[1, 2]) == pytest.approx(theirs, rel=1e-4)
    vgg = LPIPS(*saved(tmp_path, *weights(VGG)), net="vgg")
    small = x[0, 0, :, :32, :32], y[0, 0, :, :32, :32]
    theirs = by_hand(*weights(VGG), *small, 1, 2, (1, 3, 6, 9), (1, 3, 6, 9, 12))
    assert float(vgg(*(p[None] for p in small))) == pytest.approx(theirs, rel=1e-4)
    assert (
        vgg.name != alex.name
        and vgg.name.startswith("LPIPS (vgg) @")
        and not any(p.requires_grad for p in vgg.parameters())
    )


def test_lpips_of_equal_images_and_of_two_reds(alex, tmp_path):
    x = images(5, 3, 64, 64)
    assert (alex(x, x) == 0).all()
    ladder = [
        float(alex(x, (x + s * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)).mean())
        for s in (0.01, 0.1, 0.5)
    ]
    assert 0 < ladder[0] < ladder[1] < ladder[2]
    grey = (255 * x).round().to(torch.uint8)
    torch.testing.assert_close(alex(grey, grey.flip(0)), alex(grey.float() / 255, grey.flip(0).float() / 255))
    # The first layer passes on red and a constant 1; only its head counts. Reds of 1 and 0.5 are (1.03, 0.458) and
    # (0.03, 0.458) / 0.458.
    trunk, heads = weights(ALEX)
    trunk["features.0.weight"].zero_()
    trunk["features.0.bias"].zero_()
    trunk["features.0.weight"][0, 0, 5, 5] = 1
    trunk["features.0.bias"][1] = 1
    heads = {k: torch.zeros_like(v) for k, v in heads.items()}
    heads["lin0.model.1.weight"][0, :2, 0, 0] = torch.tensor([2.0, 3.0])
    one, half = (np.array([r, 0.458]) / np.hypot(r, 0.458) for r in (1.03, 0.03))
    red = torch.ones(1, 3, 64, 64)
    found = float(LPIPS(*saved(tmp_path, trunk, heads))(red, 0.5 * red))
    assert found == pytest.approx(float(((one - half) ** 2 * [2, 3]).sum()), rel=1e-5)


def test_weights_that_do_not_fit_are_named(alex, tmp_path):
    trunk, heads = weights(ALEX)
    files = saved(tmp_path, trunk, heads)
    save_file({k: v.contiguous() for k, v in trunk.items()}, tmp_path / "trunk.safetensors")
    x, y = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    same = LPIPS(tmp_path / "trunk.safetensors", files[1])
    assert torch.equal(same(x, y), alex(x, y)) and same.name == alex.name
    with pytest.raises(
        EvaluationError,
        match=r"torchvision's vgg does not fit: missing features.2.weight.*features.0.weight is \(64, 3, 11, 11\)",
    ):
        LPIPS(*files, net="vgg")
    with pytest.raises(EvaluationError, match=r"heads of LPIPS for alex does not fit: missing lin0.model.1.weight"):
        LPIPS(files[0], files[0])
    with pytest.raises(EvaluationError, match="no weights at"):
        LPIPS(tmp_path / "none.pth", files[1])
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(EvaluationError, match="no tensors that can be read"):
        LPIPS(tmp_path / "text.pth", files[1])
    torch.save({"a": 1}, tmp_path / "other.pth")
    with pytest.raises(EvaluationError, match="is no state dict"):
        LPIPS(tmp_path / "other.pth", files[1])
    with pytest.raises(EvaluationError, match="of 'alex' or 'vgg'"):
        LPIPS(*files, net="squeeze")
    with pytest.raises(EvaluationError, match="needs 32x32 pixels"):
        alex(x[..., :24, :24], x[..., :24, :24])
    with pytest.raises(EvaluationError, match="of one shape"):
        alex(x, x[:, :1])


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def dino_path(transformers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino-tiny")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, use_swiglu_ffn=False,
        layerscale_value=1.0, initializer_range=0.5,
    )  # fmt: skip
    transformers.Dinov2Model(config).save_pretrained(folder)
    transformers.BitImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.2, 0.3]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def videomae_path(transformers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videomae-tiny")
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
        use_mean_pooling=False, initializer_range=0.5,
    )  # fmt: skip
    transformers.VideoMAEModel(config).save_pretrained(folder)
    transformers.VideoMAEImageProcessor().save_pretrained(folder)
    return folder


def test_dinov2_similarity_is_the_cosine_of_class_tokens(transformers, dino_path, videomae_path):
    dino = Dinov2(str(dino_path), size=28)
    x, y = images(2, 3, 3, 28, 28), images(2, 3, 3, 28, 28, seed=1)
    assert torch.allclose(dino(x, x), torch.ones(2, 3), atol=1e-6)
    model = transformers.AutoModel.from_pretrained(dino_path)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.4, 0.5, 0.6], [0.2, 0.2, 0.3]))
    with torch.no_grad():
        a, b = (model(pixel_values=((p[1, 2] - mean) / std)[None]).last_hidden_state[0, 0] for p in (x, y))
    assert float(dino(x, y)[1, 2]) == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-5)
    assert dino(x, y).shape == (2, 3) and (dino(x, y) < 0.999).all()
    assert dino.name == f"DINOv2 similarity ({dino_path.name}, 28 px) @{dino.name[-8:]}"
    features = dino.features(x, np.arange(2))
    assert features.values.shape == (2, 24) and features.encoder == dino.name.replace(" similarity", "")
    with pytest.raises(EvaluationError, match="holds a videomae, so its figures must not be named after DINOv2"):
        Dinov2(str(videomae_path))
    with pytest.raises(EvaluationError, match="not a multiple of the patch size 14"):
        Dinov2(str(dino_path), size=64)
    with pytest.raises(WamkitError, match="'/nowhere' cannot be loaded, as a local folder or a hub id"):
        Dinov2("/nowhere")


def test_videomae_sees_whole_clips(dino_path, videomae_path):
    encoder = VideoMAE(str(videomae_path))
    clips = (255 * images(6, 10, 3, 24, 24)).to(torch.uint8)
    features = clip_features(encoder, clips, np.arange(6), batch=4)
    assert features.values.shape == (6, 16) and features.encoder == encoder.name
    np.testing.assert_allclose(features.values, clip_features(encoder, clips, np.arange(6), batch=6).values, atol=1e-5)
    assert not np.allclose(
        features.values, clip_features(encoder, clips.flip(1), np.arange(6)).values, atol=1e-2
    )  # the order of frames
    again = clips.clone()
    again[:, [1, 2, 4, 5, 7, 8]] = 0  # of ten frames, these are not among the four
    np.testing.assert_allclose(features.values, clip_features(encoder, again, np.arange(6)).values, atol=1e-5)
    with pytest.raises(EvaluationError, match="holds a dinov2"):
        VideoMAE(str(dino_path))
    with pytest.raises(EvaluationError, match="need clips"):
        clip_features(encoder, clips[0], np.arange(6))


class Program(nn.Module):
    """Takes what StyleGAN-V's I3D takes: means of colour over time and space as the first three of `size` numbers."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        assert rescale and resize and return_features
        out = torch.zeros(x.shape[0], self.size)
        out[:, :3] = (x / 255 * 2 - 1).mean((2, 3, 4))
        return out


class Other(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def script(module, path):
    torch.jit.script(module).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_i3d_is_given_what_its_program_takes(tmp_path):
    encoder = I3D(script(Program(400), tmp_path / "i3d.pt"))
    clips = (255 * images(5, 10, 3, 8, 8)).to(torch.uint8)
    found = encoder(clips)
    torch.testing.assert_close(found[:, :3], clips.float().div(255).mean((1, 3, 4)) * 2 - 1)
    assert encoder.name.startswith("I3D @") and encoder.distance == "FVD" and VideoMAE.distance == "Fréchet"
    with pytest.raises(EvaluationError, match="10 frames or more"):
        encoder(clips[:, :9])
    with pytest.raises(EvaluationError, match=r"gives \(5, 2048\).*not FVD"):
        I3D(script(Program(2048), tmp_path / "large.pt"))(clips)
    with pytest.raises(EvaluationError, match="does not take what"):
        I3D(script(Other(), tmp_path / "other.pt"))(clips)
    (tmp_path / "text.pt").write_text("no program")
    with pytest.raises(EvaluationError, match="is no TorchScript program"):
        I3D(tmp_path / "text.pt")
    with pytest.raises(EvaluationError, match="no TorchScript file"):
        I3D(tmp_path / "none.pt")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_the_table_names_weights_and_sets_each_figure_beside_copying(alex, dino_path, videomae_path, tmp_path):
    current = images(8, 2, 3, 32, 32)  # two views
    truth = (current[:, None] + 0.02 * torch.arange(1, 11)[:, None, None, None, None]).clamp(0, 1)
    truth = truth + 0  # (8, 10, 2, 3, 32, 32)
    imagined = (truth + 0.01 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)
    dino, mae, i3d = (
        Dinov2(str(dino_path), 28),
        VideoMAE(str(videomae_path)),
        I3D(script(Program(400), tmp_path / "i3d.pt")),
    )
    table = encoder_table(current, truth, imagined, np.arange(8), pairs=(alex, dino), videos=(mae, i3d))
    names = [
        alex.name,
        dino.name,
        f"MMD ({mae.name})",
        f"Fréchet ({mae.name})",
        f"MMD ({i3d.name})",
        f"FVD ({i3d.name})",
    ]
    assert [r.name for r in table.rows] == names
    rows = {r.name: r for r in table.rows}
    assert rows[alex.name].value == pytest.approx(float(alex(truth, imagined).mean()), rel=1e-5)
    assert rows[alex.name].interval.low <= rows[alex.name].value <= rows[alex.name].interval.high
    assert all("copying" in r.note for r in table.rows) and "lower is better" in rows[alex.name].note
    clips = [torch.cat([current[:, None], x], 1).transpose(1, 2).flatten(0, 1) for x in (truth, imagined)]
    real, made = (clip_features(i3d, c, np.arange(8).repeat(2)) for c in clips)
    assert rows[f"FVD ({i3d.name})"].value == pytest.approx(gaussian_frechet(real.values, made.values))
    assert rows[f"MMD ({i3d.name})"].value == polynomial_mmd(real, made, 0).value.value
    assert f"between real ones {frechet_distance(real, made, 0, dims=None).floor:.3g}" in rows[f"FVD ({i3d.name})"].note
    with pytest.raises(EvaluationError, match="name the weights"):
        encoder_table(current, truth, imagined, np.arange(8))
