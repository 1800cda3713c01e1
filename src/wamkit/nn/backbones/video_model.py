"""Released video models: a transformer, with the autoencoder and text encoder of its training, in one folder.

The folder has the layout of `diffusers`: transformer/, vae/, text_encoder/ and tokenizer/, each with a config.json and
weights in safetensors. Nothing in it is unpickled, and no code of it runs. Autoencoder and text encoder never learn:
they are loaded when they are first used, once a process, and are in no checkpoint.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wamkit.config import ConfigError
from wamkit.errors import nearest
from wamkit.files import StoreError, read_json
from wamkit.hub.folders import PICKLES, model_folder
from wamkit.nn.autoencoders.wan import WanAutoencoder
from wamkit.nn.backbones.lora import add_adapters
from wamkit.nn.backbones.released import RELEASED
from wamkit.nn.backbones.video_dit import Parts, Rope, Unread
from wamkit.nn.diffusers_weights import diffusers, empty_weights, load_weights, weight_files
from wamkit.nn.encoders import IMAGE_ENCODER, ClipFeatures, PromptEncoder
from wamkit.nn.options import BackboneConfig
from wamkit.nn.tokens import canvas
from wamkit.registry import Registry
from wamkit.types import WamkitError

COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer")


class VideoModel(ABC):
    """A released video model.

    path: its folder, or its id on the Hub.   kind: the class of its transformer in `diffusers`.
    sizes: config.json of its parts, for a model whose files are not read.
    image_encoder: folder or id of a model with image_encoder/, for a transformer with an image branch; "" for none.
    """

    kind: str

    def __init__(self, path: str, sizes: Mapping[str, Mapping[str, Any]] | None = None, image_encoder: str = ""):
        self.path = path
        self._images = ClipFeatures(image_encoder) if image_encoder else None
        self._alone, self._digests = threading.Lock(), dict[str, str]()
        self._prompts: dict[tuple[int, str], PromptEncoder] = {}
        self.folder = Path(path)
        if sizes is None:
            self.folder = model_folder(path, COMPONENTS, lambda file: not file.endswith(PICKLES))
        self._sizes = sizes if sizes is not None else {name: self._read(name) for name in COMPONENTS[:3]}
        self.config = self._sizes["transformer"]
        found = self.config.get("_class_name")
        if found != self.kind:
            fits = [n for n in VIDEO_MODELS.names() if VIDEO_MODELS.get(n).kind == found]
            more = f": choose --model.backbone.name {fits[0]}" if fits else f"; it should be a {self.kind}"
            raise WamkitError(f"{path}: its transformer is a {found}{more}")
        channels, latents = self.config.get("in_channels"), self._sizes["vae"].get("z_dim")
        if not isinstance(channels, int) or not isinstance(latents, int):
            raise WamkitError(
                f"{path}: its config.json files name no channels of latents; another kind of autoencoder?"
            )
        if channels - latents not in self.more_channels:
            raise WamkitError(
                f"{path}: its transformer reads {channels} channels, and its autoencoder gives {latents}: a model for "
                "images to video with an image branch is not known here"
            )

    more_channels: tuple[int, ...] = (0,)
    """Numbers of channels that a transformer of this kind may read beside those of latents."""

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a patch."""
        frames, *sides = self.config["patch_size"]
        return frames, sides[0], sides[-1]

    @property
    def text_dim(self) -> int:
        """Size of a feature of the text encoder."""
        encoder = self._sizes["text_encoder"]
        return encoder.get("d_model") or encoder["hidden_size"]

    @property
    def patch_channels(self) -> int:
        """Values of a latent patch."""
        a, b, c = self.patch
        return self._sizes["vae"]["z_dim"] * a * b * c

    @property
    def stride(self) -> int:
        """Pixels a side of the cell of an image that one token stands for."""
        return self._sizes["vae"].get("scale_factor_spatial", 8) * self.patch[1]

    @property
    def frames_a_latent(self) -> int:
        """Frames of a video that one latent frame holds, all but the first, which holds one."""
        return self._sizes["vae"].get("scale_factor_temporal", 4)

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.config["num_layers"]

    @property
    def width(self) -> int:
        """D, of tokens."""
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

    @property
    def autoencoder(self) -> WanAutoencoder:
        """The frozen autoencoder, loaded when it is first needed."""
        with self._alone:
            return self._autoencoder

    @cached_property
    def _autoencoder(self) -> WanAutoencoder:
        return WanAutoencoder(self.folder / "vae")

    @property
    def image_tokens(self) -> int:
        """Number of CLIP's features of an image; 0 without an image branch."""
        return self._images.length if self._images else 0

    @property
    def image_dim(self) -> int:
        """Size of one of CLIP's features; 0 without an image branch."""
        return self._images.size if self._images else 0

    def image_features(self, images: UInt8[Tensor, "B V 3 H W"]) -> Float[Tensor, "B T c"] | None:
        """CLIP's features of images, views side by side as one; None without an image branch."""
        return self._images(canvas(images)) if self._images else None

    def autoencoder_shapes(self) -> nn.Module:
        """The autoencoder's network from its configuration alone, for torch's meta device."""
        return diffusers().AutoencoderKLWan.from_config(dict(self._sizes["vae"]))

    def prompts(self, length: int, template: str) -> PromptEncoder:
        """The frozen text encoder, for `length` tokens of `template` with an instruction in it."""
        with self._alone:
            return self._prompts.setdefault((length, template), PromptEncoder(self.folder, length, template))

    def parts(self, config: BackboneConfig, acts: bool = False) -> Parts:
        """The transformer with its released weights, and adapters where `config` has some; new for every call.

        acts: actions are tokens of this transformer, not of an expert beside it.
        On torch's meta device, and inside of `other_weights`, it is built from its configuration alone; inside of
        `weights_later` without memory for its weights. Raises WamkitError where its weights cannot be read.
        """
        kind, weights = getattr(diffusers(), self.kind), _WEIGHTS.get()
        frozen = bool(config.freeze or config.lora.rank)
        begins = (weights.begins or frozen) and not torch.empty(0).is_meta  # with released weights
        if self._images and begins:
            raise WamkitError(
                f"{self.path} was released without an image branch, so neither it nor adapters can stand on it: leave "
                "out backbone.image_encoder, or backbone.lora.rank and backbone.freeze"
            )
        if begins and not weights.later:
            model = load_weights(kind, self.folder / "transformer", f"{self.path}: the weights in transformer/")
        else:
            with empty_weights() if weights.later else nullcontext():
                model = kind.from_config(dict(self.config) | self.image_branch())
        if frozen:
            model.requires_grad_(False)
        if config.lora.rank:
            add_adapters(model, config.lora)
        parts = self.describe(model, config, acts)
        if begins and weights.later:
            released = parts.released_names()
            own = {name for name, p in parts.named_parameters() if weights.begins or not p.requires_grad}
            files = weight_files(self.folder / "transformer", f"{self.path}: the weights in transformer/")
            parts.unread = Unread(files, {n: of for n, of in released.items() if n in own})
        return parts

    def image_branch(self) -> dict[str, Any]:
        """Entries of the transformer's configuration for its image branch. Raises ConfigError for a kind without."""
        if self._images:
            raise ConfigError(f"a {self.kind} has no image branch: leave out backbone.image_encoder")
        return {}

    @abstractmethod
    def describe(self, model: nn.Module, config: BackboneConfig, acts: bool = False) -> Parts:
        """The pieces of a transformer of this kind. acts: as above."""

    @abstractmethod
    def expert(self, beside: Parts, width: int, config: BackboneConfig) -> Parts:
        """An expert of another width for tokens outside of the video, which shares the attention of `beside`."""

    @abstractmethod
    def rope(self, position: Float[Tensor, "... L 3"]) -> Rope:
        """As `Parts.rope`."""

    @abstractmethod
    def turn(self, x: Tensor, rope: Rope) -> Tensor:
        """Queries or keys (..., L, heads, d), turned."""

    def __deepcopy__(self, memo: Any) -> VideoModel:
        return self  # it never changes, and its encoders are large

    def digest(self, component: str) -> str:
        """SHA-256 of a component: of the names and contents of its files, which are read once a process."""
        with self._alone:
            if component not in self._digests:
                place = self._images.folder if self._images and component == IMAGE_ENCODER else self.folder
                self._digests[component] = _digest(place / component)
            return self._digests[component]

    def _read(self, component: str) -> dict[str, Any]:
        file = self.folder / component / "config.json"
        if not file.is_file():
            listed = ", ".join(f"{name}/" for name in COMPONENTS)
            raise WamkitError(f"{self.path} is no video model: it lacks {component}/config.json. Expected are {listed}")
        try:
            found = read_json(file)
        except StoreError as error:
            raise WamkitError(f"{self.path}: {error}") from error
        if not isinstance(found, dict):
            raise WamkitError(f"{file} holds no settings; is it of another program?")
        return found


VIDEO_MODELS: Registry[type[VideoModel]] = Registry("video model", "wamkit.video_models", package="wamkit.nn.backbones")
"""Released video models by name. Packages add theirs under the entry-point group `wamkit.video_models`."""


class _Weights(NamedTuple):
    """Weights that transformers are built with.

    begins: with released ones; others replace them after building otherwise.
    later: without memory for any, which `Parts.unread` names, or others replace.
    """

    begins: bool = True
    later: bool = False


_WEIGHTS = ContextVar("weights", default=_Weights())  # noqa: B039 (a tuple)


@contextmanager
def other_weights(later: bool = False) -> Iterator[None]:
    """A block in which transformers are built for weights that are loaded after it, so that released ones are not.

    later: as in `weights_later`.
    """
    token = _WEIGHTS.set(_Weights(False, later))
    try:
        yield
    finally:
        _WEIGHTS.reset(token)


@contextmanager
def weights_later() -> Iterator[None]:
    """A block in which transformers are built on torch's meta device: several processes then divide them, and read
    released weights each in its part (`Parts.unread`)."""
    token = _WEIGHTS.set(_Weights(True, True))
    try:
        yield
    finally:
        _WEIGHTS.reset(token)


@lru_cache(maxsize=8)
def _opened(name: str, path: str, image_encoder: str) -> VideoModel:
    return VIDEO_MODELS.get(name)(path, image_encoder=image_encoder)


@lru_cache(maxsize=8)
def _planned(name: str, path: str, image_encoder: str) -> VideoModel:
    return VIDEO_MODELS.get(name)(path, RELEASED[path], image_encoder)


def video_model(config: BackboneConfig) -> VideoModel:
    """The video model that `config` names; on torch's meta device its sizes alone, where it is one of `RELEASED`.

    Raises WamkitError, naming what is wrong, for a folder that is none.
    """
    if config.name not in VIDEO_MODELS.names():
        known = ", ".join(VIDEO_MODELS.names())
        raise ConfigError(
            f"backbone.path names a pretrained video model, and backbone.name is {config.name!r}"
            f"{nearest(config.name, VIDEO_MODELS.names())}: choose one of {known}"
        )
    if torch.empty(0).is_meta and config.path in RELEASED and not Path(config.path).is_dir():
        return _planned(config.name, config.path, config.image_encoder)
    return _opened(config.name, config.path, config.image_encoder)


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        with open(file, "rb") as f:
            content = hashlib.file_digest(f, "sha256").hexdigest()
        total.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()
