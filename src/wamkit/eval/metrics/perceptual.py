"""Metrics whose names belong to pretrained weights: LPIPS, DINOv2 similarity, FVD. Never given without those weights.

Weights are named by path (or hub id, for `transformers`), are not part of wamkit, and their version is in every
figure's name: eight digits of a hash. All encoders were trained on photographs, so what they see of a simulator's 64x64
images is for the reader to judge: beside each figure stands the same of copying the current frame (`encoder_table`),
and beside distances of sets their floor.

Images are uint8 in [0, 255] or floating point in [0, 1], RGB, as in `metrics.image`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Integer, Shaped
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from wamkit.eval.metrics.image import unit
from wamkit.eval.metrics.video_distribution import ClipFeatures
from wamkit.nn.encoders import vision_encoder
from wamkit.types import EvaluationError

BATCH = 32

# Outputs, kernel, stride and padding of a convolution, each followed by a ReLU. A number is the kernel of a max-pooling
# with stride 2. In the order of torchvision's `features`, so that its keys fit.
_ALEX = ((64, 11, 4, 2), 3, (192, 5, 1, 2), 3, (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
_VGG = tuple(
    part for n, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)) for part in (*((width, 3, 1, 1),) * n, 2)
)[:-1]
_TRUNKS = {"alex": (_ALEX, (1, 4, 7, 9, 11), 32), "vgg": (_VGG, (3, 8, 15, 22, 29), 16)}
"""Layers, those whose outputs are compared (after a ReLU), and the least height and width."""


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity (Zhang et al. 2018, arXiv 1801.03924), version 0.1, from the released
    weights.

    trunk: state dict of torchvision's AlexNet or VGG-16 trained on ImageNet (`features.0.weight` ...; its classifier is
    not needed).
    heads: that of the `lpips` package, `weights/v0.1/alex.pth` or `vgg.pth` (`lin0.model.1.weight` ...). Either is a
    PyTorch file, of which tensors alone are read, or safetensors.   net: which of the two. `alex` is the authors'
    choice for evaluation; the two have different scales and do not compare.

    The distance is the sum over five layers of the mean over places of sum_c w_c (f_c - g_c)^2, f and g the layer's
    features of the two images, of unit length over channels. At least 0, 0 for equal images, lower is better. Images
    are not resized, as in the
    original: figures of different resolutions do not compare, and at 64x64 the last layers see 3x3 places.
    Raises EvaluationError for a file that cannot be read, and names keys that are missing or of another shape.
    """

    better = "lower"

    def __init__(self, trunk: str | Path, heads: str | Path, net: Literal["alex", "vgg"] = "alex"):
        super().__init__()
        if net not in _TRUNKS:
            raise EvaluationError(f"LPIPS is of 'alex' or 'vgg', not of {net!r}")
        layers, self.taps, self.least = _TRUNKS[net]
        self.trunk, widths = nn.Sequential(), []
        channels = 3
        for layer in layers:
            if isinstance(layer, int):
                self.trunk.append(nn.MaxPool2d(layer, 2))
                continue
            width, kernel, stride, padding = layer
            self.trunk.extend([nn.Conv2d(channels, width, kernel, stride, padding), nn.ReLU()])
            channels = width
        widths = [m.out_channels for i, m in enumerate(self.trunk) if isinstance(m, nn.Conv2d) and i + 1 in self.taps]
        self.heads = nn.ModuleList(nn.Conv2d(w, 1, 1, bias=False) for w in widths)
        found = [
            _fill(self.trunk, read_weights(trunk), "features.{}", f"{trunk} as a trunk of torchvision's {net}"),
            _fill(self.heads, read_weights(heads), "lin{}.model.1", f"{heads} as the heads of LPIPS for {net}"),
        ]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.name = f"LPIPS ({net}) @{_version(*found)}"
        self.eval().requires_grad_(False)

    def forward(self, truth: Shaped[Tensor, "*n 3 H W"], image: Shaped[Tensor, "*n 3 H W"]) -> Float[Tensor, "*n"]:
        """The distance of each pair. Raises EvaluationError for unequal shapes, and images smaller than 32 (alex) or 16
        (vgg) pixels.
        """
        lead = _checked(truth, image)
        if min(truth.shape[-2:]) < self.least:
            raise EvaluationError(
                f"{self.name} needs {self.least}x{self.least} pixels, found {tuple(truth.shape[-2:])}"
            )
        pairs = zip(truth.flatten(0, -4).split(BATCH), image.flatten(0, -4).split(BATCH), strict=True)
        return torch.cat([self._distance(x, y) for x, y in pairs]).reshape(lead)

    def _distance(self, truth: Tensor, image: Tensor) -> Tensor:
        x = torch.cat([unit(truth), unit(image)]).to(self.scale.device)
        x = (2 * x - 1 - self.shift) / self.scale
        total, head = x.new_zeros(len(truth)), iter(self.heads)
        for i, layer in enumerate(self.trunk):
            x = layer(x)
            if i in self.taps:
                a, b = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)).chunk(2)
                total = total + next(head)((a - b).square()).mean((1, 2, 3))
        return total


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file or of safetensors. Nothing but tensors is read. Raises EvaluationError where there
    are none.
    """
    path = Path(path)
    if not path.is_file():
        raise EvaluationError(f"there are no weights at {path}: name a file that you have downloaded")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # of many kinds, by what the file is
        raise EvaluationError(f"{path} holds no tensors that can be read: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise EvaluationError(f"{path} is no state dict: it should map names to tensors")
    return dict(state)


def _fill(layers: nn.Module, state: Mapping[str, Tensor], pattern: str, what: str) -> dict[str, Tensor]:
    """Copies the weights of each child from the keys that `pattern` gives it, and returns them."""
    wanted = {
        f"{pattern.format(i)}.{k}": p for i, child in layers.named_children() for k, p in child.named_parameters()
    }
    missing = [k for k in wanted if k not in state]
    other = [
        f"{k} is {tuple(state[k].shape)}, not {tuple(p.shape)}"
        for k, p in wanted.items()
        if k in state and state[k].shape != p.shape
    ]
    if missing or other:
        faults = ([f"missing {', '.join(missing)}"] if missing else []) + other
        raise EvaluationError(f"{what} does not fit: {'; '.join(faults)}")
    with torch.no_grad():
        for key, parameter in wanted.items():
            parameter.copy_(state[key])
    return {k: state[k] for k in wanted}


class Dinov2(nn.Module):
    """DINOv2 (Oquab et al. 2023, arXiv 2304.07193) through `transformers`: cosine similarity of images, and features of
    clips.

    model: a local path or a hub id (`facebook/dinov2-small` ...) of a Dinov2Model.   size: pixels to which images are
    resized, both sides (bilinear with antialiasing; a multiple of the patch size, 14). An image's vector is the class
    token after the last norm. Cosines are high for any two images of one scene, so read them beside the copy's, and
    figures of different models or sizes do not compare. Raises WamkitError without the package, EvaluationError for
    weights of something else: a figure is never named by what it is not.
    """

    better = "higher"

    def __init__(self, model: str, size: int = 224):
        super().__init__()
        encoder, mean, std = vision_encoder(model, "DINOv2 similarity", "a model")
        _of_kind(encoder, ("dinov2", "dinov2_with_registers"), model, "DINOv2")
        if size % encoder.config.patch_size:
            raise EvaluationError(f"a size of {size} is not a multiple of the patch size {encoder.config.patch_size}")
        self.encoder, self.size = encoder, size
        self.register_buffer("mean", mean.view(1, 3, 1, 1))
        self.register_buffer("std", std.view(1, 3, 1, 1))
        self.name = f"DINOv2 similarity ({Path(model).name}, {size} px) @{_version(encoder.state_dict())}"

    @torch.no_grad()
    def vector(self, frames: Shaped[Tensor, "n 3 H W"]) -> Float[Tensor, "n K"]:
        """The class token of each image."""
        x = (_resized(frames.to(self.mean.device), self.size) - self.mean) / self.std
        return self.encoder(pixel_values=x).last_hidden_state[:, 0]

    def forward(self, truth: Shaped[Tensor, "*n 3 H W"], image: Shaped[Tensor, "*n 3 H W"]) -> Float[Tensor, "*n"]:
        """Cosine of both images' vectors, in [-1, 1], 1 for equal images. Raises EvaluationError for unequal shapes."""
        lead = _checked(truth, image)
        a, b = (torch.cat([self.vector(f) for f in x.flatten(0, -4).split(BATCH)]) for x in (truth, image))
        return F.cosine_similarity(a, b, dim=-1).reshape(lead)

    def features(self, clips: Shaped[Tensor, "N F 3 H W"], episode: Integer[np.ndarray, " N"]) -> ClipFeatures:
        """Features of clips, for `polynomial_mmd` and `frechet_distance`; frames pooled as in `ClipFeatures.encode`."""
        return ClipFeatures.encode(clips, self.vector, self.name.replace(" similarity", ""), episode, BATCH)


class VideoMAE(nn.Module):
    """VideoMAE (Tong et al. 2022, arXiv 2203.12602) through `transformers`: features of whole clips.

    model: a local path or a hub id (`MCG-NJU/videomae-base` ...). Images are resized to the model's size (bilinear,
    antialiased), and of a clip as many frames as the model takes (16) are shown, evenly spread from the first to the
    last, repeated where there are fewer. A clip's vector is the mean over the tokens of the last layer. Distances
    between sets are named after VideoMAE: FVD is I3D's name. Raises WamkitError without the package, EvaluationError
    for weights of something else.
    """

    distance = "Fréchet"
    least = 2

    def __init__(self, model: str):
        super().__init__()
        self.encoder, mean, std = vision_encoder(model, "VideoMAE", "a model")
        _of_kind(self.encoder, ("videomae",), model, "VideoMAE")
        self.register_buffer("mean", mean.view(1, 1, 3, 1, 1))
        self.register_buffer("std", std.view(1, 1, 3, 1, 1))
        self.name = f"VideoMAE {Path(model).name} @{_version(self.encoder.state_dict())}"

    @torch.no_grad()
    def forward(self, clips: Shaped[Tensor, "n F 3 H W"]) -> Float[Tensor, "n K"]:
        """The vector of each clip."""
        config = self.encoder.config
        rows = torch.linspace(0, clips.shape[1] - 1, config.num_frames).round().long()
        shown = clips[:, rows].flatten(0, 1).to(self.mean.device)
        x = _resized(shown, config.image_size).unflatten(0, (len(clips), -1))
        return self.encoder(pixel_values=(x - self.mean) / self.std).last_hidden_state.mean(1)


class I3D(nn.Module):
    """The encoder of the Fréchet video distance (Unterthiner et al. 2018, arXiv 1812.01717): I3D on Kinetics-400, as
    TorchScript.

    path: `i3d_torchscript.pt` of the StyleGAN-V release (Skorokhodov et al. 2022). **TorchScript is a program: loading
    the file runs it.** Name one that you trust; wamkit neither ships nor fetches it. Only with it is a distance called
    FVD, and whether the file is that one is for who names it to know; the hash is in the name. The program resizes
    images to 224x224 and scales them itself (`rescale=True, resize=True`, so it is given [0, 255]), and returns the 400
    logits (`return_features=True`). FVD depends on the number of frames and on the rate, so state both. At least 10
    frames. Raises EvaluationError for a file that is no such program.
    """

    distance = "FVD"
    least = 10

    def __init__(self, path: str | Path):
        super().__init__()
        if not Path(path).is_file():
            raise EvaluationError(
                f"there is no TorchScript file at {path}: name one that you have downloaded and trust"
            )
        try:
            self.program = torch.jit.load(str(path), map_location="cpu").eval()
        except RuntimeError as error:
            raise EvaluationError(f"{path} is no TorchScript program: {error}") from error
        with open(path, "rb") as file:
            self.name = f"I3D @{hashlib.file_digest(file, 'sha256').hexdigest()[:8]}"

    @torch.no_grad()
    def forward(self, clips: Shaped[Tensor, "n F 3 H W"]) -> Float[Tensor, "n 400"]:
        """Logits of each clip. Raises EvaluationError for fewer than 10 frames, or where the program gives something
        else.
        """
        if clips.shape[1] < self.least:
            raise EvaluationError(f"I3D needs 10 frames or more, and the clips have {clips.shape[1]}")
        x = 255 * unit(clips).transpose(1, 2)
        try:
            out = self.program(x, rescale=True, resize=True, return_features=True)
        except RuntimeError as error:
            raise EvaluationError(f"{self.name} does not take what StyleGAN-V's I3D takes: {error}") from error
        if out.shape != (len(clips), 400):
            raise EvaluationError(
                f"{self.name} gives {tuple(out.shape)}; I3D gives 400 logits a clip, so this is not FVD"
            )
        return out


def clip_features(
    encoder: VideoMAE | I3D, clips: Shaped[Tensor, "N F 3 H W"], episode: Integer[np.ndarray, " N"], batch: int = 4
) -> ClipFeatures:
    """Features of whole clips, for `polynomial_mmd` and `frechet_distance`. episode: see `ClipFeatures`."""
    if clips.ndim != 5 or not len(clips):
        raise EvaluationError(f"need clips (N, F, 3, H, W), at least one, not {tuple(clips.shape)}")
    values = torch.cat([encoder(part) for part in clips.split(batch)])
    return ClipFeatures(encoder.name, values.double().cpu().numpy(), np.asarray(episode))


def _resized(frames: Tensor, size: int | Sequence[int]) -> Tensor:
    """Images (n, 3, H, W) in [0, 1], of `size` pixels."""
    target = (size, size) if isinstance(size, int) else tuple(size)
    return F.interpolate(unit(frames), target, mode="bilinear", antialias=True).clamp(0, 1)


def _checked(truth: Tensor, image: Tensor) -> torch.Size:
    if truth.shape != image.shape or truth.ndim < 4 or truth.shape[-3] != 3:
        raise EvaluationError(
            f"need two batches of images (*n, 3, H, W) of one shape: "
            f"truth {tuple(truth.shape)}, prediction {tuple(image.shape)}"
        )
    return truth.shape[:-3]


def _of_kind(encoder: nn.Module, kinds: Sequence[str], model: str, name: str) -> None:
    if encoder.config.model_type not in kinds:
        raise EvaluationError(
            f"{model} holds a {encoder.config.model_type}, so its figures must not be named after {name}"
        )


def _version(*states: Mapping[str, Tensor]) -> str:
    """Eight hexadecimal digits of a hash of these weights."""
    digest = hashlib.sha256()
    for state in states:
        for key in sorted(state):
            digest.update(key.encode())
            digest.update(state[key].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]
