"""Pretrained encoders of text and images through `transformers`, beside a small text table learned from scratch."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import threading
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.files import StoreError, atomic_write, read_bytes, read_json
from wamkit.hub.folders import PICKLES, model_folder
from wamkit.nn.backbones.released import ENCODERS
from wamkit.nn.options import ImageConfig, TextConfig
from wamkit.nn.tokens import ImageTokens, TextTable, grid_of
from wamkit.types import Spec, WamkitError

KNOWN_BYTES = 2**30
"""Memory that features of instructions may take."""


V_JEPA = "vjepa2"
"""The type of V-JEPA 2 in `transformers`."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _transformers(what: str, model: str, option: str) -> Any:
    """The package. Raises WamkitError if it is missing, or if no model is named."""
    try:
        import transformers
    except ImportError as e:
        raise WamkitError(f"{what} needs the package transformers: pip install 'wamkit[pretrained]'") from e
    if not model:
        raise WamkitError(f"{what} needs {option}, a local path or a hub id")
    return transformers


def _loaded(kind: Any, model: str, **options: Any) -> Any:
    """The object that `transformers` loads from a local path or hub id. Raises WamkitError if it cannot."""
    try:
        return kind.from_pretrained(model, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise WamkitError(f"{model!r} cannot be loaded, as a local folder or a hub id: {error}") from error


def _text_encoder(transformers: Any, model: str, **options: Any) -> Any:
    """The encoder of a model. `AutoModel` would add a decoder, without weights, to an encoder that is saved alone."""
    name = (_loaded(transformers.AutoConfig, model).architectures or [""])[0]
    kind = getattr(transformers, name, None) if name.endswith("EncoderModel") else transformers.AutoModel
    if kind is None:
        raise WamkitError(f"{model!r} holds a {name}, which transformers does not know")
    return _loaded(kind, model, use_safetensors=True, **options)


def _planned(transformers: Any, model: str) -> Any:
    """On torch's meta device, a model of `ENCODERS` without its weights; None for all others."""
    if not torch.empty(0).is_meta or model not in ENCODERS or Path(model).is_dir():
        return None
    kind, sizes = ENCODERS[model]
    return transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **sizes))


class PretrainedText(nn.Module):
    """A frozen pretrained encoder, averaged over the instruction's tokens and projected: (B, 1, D).

    The encoder is not part of the checkpoint (it is large and does not learn): it is loaded again from `model`.
    """

    def __init__(self, model: str, width: int):
        super().__init__()
        transformers = _transformers("text.kind=pretrained", model, "text.model")
        planned = _planned(transformers, model)
        self.tokenizer = None if planned else _loaded(transformers.AutoTokenizer, model)
        encoder = (planned or _text_encoder(transformers, model)).eval().requires_grad_(False)
        # Kept out of the module's parameters on purpose, see the docstring.
        object.__setattr__(
            self, "encoder", getattr(encoder, "encoder", encoder) if encoder.config.is_encoder_decoder else encoder
        )
        self.project = nn.Linear(encoder.config.hidden_size, width)

    def forward(self, texts: list[str], generator: torch.Generator | None = None) -> Float[Tensor, "B 1 D"]:
        """Embeddings of `texts`; the generator is for encoders that are trained with noise."""
        device = self.project.weight.device
        self.encoder.to(device)
        tokens = self.tokenizer(sorted(set(texts)), padding=True, return_tensors="pt").to(device)
        with torch.no_grad():
            hidden = self.encoder(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        row = {t: i for i, t in enumerate(sorted(set(texts)))}
        return self.project(mean[[row[t] for t in texts]]).unsqueeze(1)


class PromptEncoder:
    """The frozen text encoder of a released video model, token by token: UMT5 of Wan, T5 of Cosmos.

    Features of padding are zeros, which a video model attends to like all others, as it was trained to. It is no
    module, so that it is in no checkpoint and never copied.

    folder: of the model, with tokenizer/ and text_encoder/.   length: tokens; longer texts are cut.
    template: text with {} where an instruction stands.
    """

    def __init__(self, folder: Path, length: int, template: str = "{}"):
        self.length, self._template, self._folder = length, template, folder
        self._known: dict[str, Tensor] = {}
        self._kept: Path | None = None
        self._alone = threading.Lock()  # training asks from several threads

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded when it is first needed."""
        transformers = _transformers("a pretrained video model", str(self._folder), "model.backbone.path")
        return _loaded(transformers.AutoTokenizer, str(self._folder / "tokenizer"))

    @cached_property
    def model(self) -> Any:
        """The encoder, in the precision of its file, loaded when it is first needed."""
        transformers = _transformers("a pretrained video model", str(self._folder), "model.backbone.path")
        return (
            _text_encoder(transformers, str(self._folder / "text_encoder"), dtype="auto").eval().requires_grad_(False)
        )

    def keep_in(self, folder: Path, identity: str) -> None:
        """Keeps features on disk, below `folder`: texts that are there need no encoder at all.

        identity: digest of the files of tokenizer and encoder.
        """
        key = hashlib.sha256(json.dumps([identity, self.length, self._template]).encode()).hexdigest()[:32]
        self._kept = folder / key

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], device: torch.device) -> Float[Tensor, "B T c"]:
        """Features of instructions, in float32. Each instruction is encoded once."""
        with self._alone:
            asked = {text: self._known.get(text) for text in dict.fromkeys(texts)}
            for text, features in asked.items():
                asked[text] = found = self._features(text, device) if features is None else features
                if len(self._known) * found.nbytes > KNOWN_BYTES:
                    self._known.clear()
                self._known[text] = found
        return torch.stack([asked[text] for text in texts]).to(device)

    def _features(self, text: str, device: torch.device) -> Float[Tensor, "T c"]:
        """Features of one text by itself, so that they depend on no other; from the disk if they are kept there."""
        file = self._kept and self._kept / f"{hashlib.sha256(text.encode()).hexdigest()}.npy"
        if file and (kept := _read_kept(file, self.length)) is not None:
            return kept
        found = self._encoded(text, device)
        if file:
            content = io.BytesIO()
            np.save(content, found.numpy())
            atomic_write(file, content.getvalue() + zlib.crc32(content.getvalue()).to_bytes(4, "little"))
        return found

    def _encoded(self, text: str, device: torch.device) -> Float[Tensor, "T c"]:
        tokens = self.tokenizer(
            " ".join(self._template.replace("{}", text).split()),
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        ).to(device)
        with torch.autocast(device.type, enabled=False):
            hidden = self.model.to(device)(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return (hidden * tokens.attention_mask.unsqueeze(-1))[0].float().cpu()


IMAGE_ENCODER = "image_encoder"
"""Folder of a model of the layout of `diffusers` with an encoder of images."""


class ClipFeatures:
    """The frozen CLIP of a video model with an image branch: what the last block but one of its encoder gives.

    It is no module, as `PromptEncoder` is none.

    path: folder with image_encoder/, or its id on the Hub. Raises WamkitError where there is none.
    """

    MEAN = (0.48145466, 0.4578275, 0.40821073)
    STD = (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, path: str):
        self.folder = model_folder(path, (IMAGE_ENCODER,), lambda file: not file.endswith(PICKLES))
        file = self.folder / IMAGE_ENCODER / "config.json"
        try:
            told = read_json(file)
            self.size, self._side = int(told["hidden_size"]), int(told["image_size"])
            self.length = (self._side // int(told["patch_size"])) ** 2 + 1
        except (StoreError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise WamkitError(f"{path}: {IMAGE_ENCODER}/config.json is not that of a CLIP ({error})") from error
        self._alone = threading.Lock()

    @cached_property
    def model(self) -> Any:
        """The encoder, loaded when it is first needed."""
        kind = _transformers("an image branch", str(self.folder), "model.backbone.image_encoder").CLIPVisionModel
        return _loaded(kind, str(self.folder / IMAGE_ENCODER), use_safetensors=True).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, image_BCHW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T c"]:
        """Features of images in [-1, 1], in float32: of the class first, then of patches."""
        x = F.interpolate(image_BCHW.float(), (self._side, self._side), mode="bicubic", align_corners=False)
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (self.MEAN, self.STD))
        with self._alone, torch.autocast(x.device.type, enabled=False):
            found = self.model.to(x.device)(((x + 1) / 2 - mean) / std, output_hidden_states=True)
        return found.hidden_states[-2].float()


def _read_kept(file: Path, length: int) -> Tensor | None:
    """Kept features; None where there are none, or damaged ones."""
    try:
        content = read_bytes(file)
        if zlib.crc32(content[:-4]).to_bytes(4, "little") != content[-4:]:
            return None
        found = np.load(io.BytesIO(content[:-4]), allow_pickle=False)
    except (StoreError, ValueError, EOFError):
        return None
    return torch.from_numpy(found) if found.ndim == 2 and len(found) == length else None


def vision_encoder(model: str, what: str, option: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A frozen encoder of images or clips, with mean and deviation, float32 (3,), of images in [0, 1].

    model: a local path or a hub id.
    what, option: for the error if the package or the name is missing: its user, and the option that names the model.
    """
    transformers = _transformers(what, model, option)
    if (planned := _planned(transformers, model)) is not None:
        return planned, torch.zeros(3), torch.ones(3)
    encoder = _loaded(transformers.AutoModel, model, use_safetensors=True)
    encoder = getattr(encoder, "vision_model", encoder).eval().requires_grad_(False)
    if encoder.config.model_type == V_JEPA:  # its own processor of videos needs torchvision
        return encoder, torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    processor = _loaded(transformers.AutoImageProcessor, model)
    return encoder, torch.tensor(processor.image_mean), torch.tensor(processor.image_std)


class VisionTeacher(nn.Module):
    """A frozen pretrained vision encoder (DINO, SigLIP, CLIP, ViT ...), with patch tokens pooled to a grid of cells.

    V-JEPA 2 encodes clips: it is shown an image as a clip that stands still, as long as one of its tokens, so that it
    sees no other moment.

    forward: images (B, 3, H, W) in [-1, 1] -> (B, rows * columns, channels). Not part of the checkpoint, as above.
    option: that names the model, for the error if it is missing.
    """

    def __init__(self, model: str, grid: tuple[int, int], option: str = "model.pretrained"):
        super().__init__()
        encoder, mean, std = vision_encoder(model, "a pretrained encoder of images", option)
        object.__setattr__(self, "encoder", encoder)
        self.grid, self.channels = grid, encoder.config.hidden_size
        size = encoder.config.crop_size if self.of_clips else encoder.config.image_size
        self.size: tuple[int, int] = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, 3, 1, 1), persistent=False)

    @property
    def of_clips(self) -> bool:
        """True for an encoder of clips."""
        return self.encoder.config.model_type == V_JEPA

    def __deepcopy__(self, memo: dict[int, Any]) -> VisionTeacher:
        memo[id(self.encoder)] = self.encoder  # shared: it never changes
        memo[id(self)] = new = self.__class__.__new__(self.__class__)
        vars(new).update(copy.deepcopy(vars(self), memo))
        return new

    @torch.no_grad()
    def forward(self, image_BCHW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L c"]:
        self.encoder.to(image_BCHW.device)
        x = F.interpolate((image_BCHW + 1) / 2, self.size, mode="bilinear", antialias=True)
        x = (x - self.mean) / self.std
        if self.of_clips:
            still = x.unsqueeze(1).expand(-1, self.encoder.config.tubelet_size, -1, -1, -1)
            tokens = self.encoder(pixel_values_videos=still, skip_predictor=True).last_hidden_state
        else:
            tokens = self.encoder(pixel_values=x).last_hidden_state
        rows, columns = (n // self.encoder.config.patch_size for n in self.size)
        # Class and register tokens come first.
        patches = tokens[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))
        return F.adaptive_avg_pool2d(patches, self.grid).flatten(2).transpose(1, 2)


class PretrainedImage(nn.Module):
    """A frozen vision encoder of the views of a canvas, each by itself, and a learned projection to tokens.

    grid: rows and columns of cells of the canvas, of `views` views side by side.
    """

    def __init__(self, model: str, grid: tuple[int, int], views: int, width: int):
        super().__init__()
        self.views = views
        self.vision = VisionTeacher(model, (grid[0], grid[1] // views), "model.image.model")
        self.project = nn.Linear(self.vision.channels, width)

    def features(self, frame_BCHW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L c"]:
        """The encoder's features, cell by cell in the order of the canvas."""
        alone = frame_BCHW.unflatten(-1, (self.views, -1)).movedim(-2, 1)
        found = self.vision(alone.flatten(0, 1)).unflatten(1, self.vision.grid)
        return found.unflatten(0, (-1, self.views)).transpose(1, 2).flatten(1, 3)

    def forward(self, frame_BCHW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L D"]:
        return self.project(self.features(frame_BCHW))


def build_image(config: ImageConfig, spec: Spec, width: int, stride: int) -> nn.Module:
    """The encoder of images of `config`: frames on the canvas (B, 3, H, W) to one token a cell of `stride` pixels."""
    if config.kind == "cells":
        return ImageTokens(width, stride)
    return PretrainedImage(config.model, grid_of(spec, stride), spec.views, width)


def build_text(config: TextConfig, width: int, dropout: float = 0.0) -> nn.Module:
    """The text encoder of `config`: maps a list of B instructions, and in training a generator, to (B, 1, width)."""
    return TextTable(width, config.buckets, dropout) if config.kind == "table" else PretrainedText(config.model, width)
