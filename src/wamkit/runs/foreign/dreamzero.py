"""DreamZero on Wan2.2-TI2V-5B (NVIDIA; RLinf): one video model for video and actions, denoised at one noise level.

It is `unified` with `targets.shared_level`, asked for `joint`, whose present image is also read by CLIP. Known are its
checkpoints in safetensors, whose networks have the names of Wan's own code. Each robot has embeddings of its own; one
of them is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wamkit.files import read_json
from wamkit.nn.family_options import UnifiedConfig
from wamkit.nn.options import BackboneConfig, TargetConfig
from wamkit.runs.config import RunConfig, TrainConfig, WindowConfig
from wamkit.runs.foreign.base import FOREIGN, Foreign, Source, renamed, scales
from wamkit.runs.foreign.wan_names import BLOCK, OUTER
from wamkit.types import Spec, WamkitError

BASE = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
IMAGES = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
"""A model whose image_encoder/ is the CLIP that DreamZero was trained with."""
PROMPT = (
    "A multi-view video shows that a robot {0} The video is split into two horizontal views: the left view shows the "
    "exterior camera and the right view shows the wrist camera. The robot {0}"
)
"""That of LIBERO."""
PREFIX = "action_head.model."
FROZEN = ("action_head.text_encoder.", "action_head.image_encoder.", "action_head.vae.")
"""Parts that are those of Wan as it was released; they are read from there."""
PARTS = "trunk._all.parts.future.model."
MORE = {
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
}
"""Parts of a block's image branch."""
TOP = {
    **OUTER,
    "patch_embedding": "patch_embedding",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
}
OWN = {
    "state_encoder.layer1": "action.proprio.0",
    "state_encoder.layer2": "action.proprio.2",
    "action_encoder.W1": "action.stream.embed.values",
    "action_encoder.W2": "action.stream.embed.both",
    "action_encoder.W3": "action.stream.embed.out",
    "action_decoder.layer1": "action.stream.head.0",
    "action_decoder.layer2": "action.stream.head.2",
}
"""Maps of which every robot has its own: matrices W (robots, inputs, outputs) and biases b (robots, outputs)."""


def our_name(name: str) -> str | None:
    """The name of a tensor in `unified`, or None for one that has no place there.

    Examples:
        >>> our_name("action_head.model.blocks.3.cross_attn.k_img.weight")
        'trunk._all.parts.future.model.blocks.3.attn2.add_k_proj.weight'
        >>> our_name("action_head.model.action_encoder.W1.b")
        'action.stream.embed.values.bias'
    """
    name = name.removeprefix(PREFIX)
    stem, dot, end = name.rpartition(".")
    if stem in OWN and end in ("W", "b"):
        return f"{OWN[stem]}.{'weight' if end == 'W' else 'bias'}"
    if not dot or end not in ("weight", "bias"):
        stem, end = name, ""
    ending = f".{end}" if end else ""
    if (found := re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)) and (part := (BLOCK | MORE).get(found[2])):
        return f"{PARTS}blocks.{found[1]}.{part}{ending}"
    return f"{PARTS}{TOP[stem]}{ending}" if stem in TOP else None


@FOREIGN.register("dreamzero")
def dreamzero(source: Source) -> Foreign:
    """A run with the weights of DreamZero-5B. Raises WamkitError, naming the tensor, for weights of another model."""
    told = _settings(source)
    tensors = {n: _of_robot(n, x, source.robot) for n, x in source.tensors(FROZEN).items()}
    weights = dict(renamed(tensors, our_name))
    for needed in ("action.stream.head.2.weight", "action.proprio.0.weight"):
        if needed not in weights:
            raise WamkitError(f"these weights hold no {needed}: they are not DreamZero's, or not all of them")
    if f"{PARTS}blocks.0.attn2.add_k_proj.weight" not in weights:
        raise WamkitError("these weights have no image branch: DreamZero-14B and others are not known here")
    action, hidden = weights["action.stream.head.2.weight"].shape
    state = weights["action.proprio.0.weight"].shape[1]
    frames, chunk = 4 * told.get("num_frame_per_block", 2), told.get("num_action_per_block", 16)
    if frames < 1 or chunk % frames:
        raise WamkitError(f"{source.folder}: {chunk} actions and {frames} frames are no window")
    offsets = tuple(range(chunk // frames, chunk + 1, chunk // frames))
    cameras = source.cameras or ("image", "wrist_image")
    height, width = told.get("target_video_height", 160), told.get("target_video_width", 320)
    if width % len(cameras):
        raise WamkitError(f"{len(cameras)} cameras do not share a canvas {width} pixels wide: name them by --cameras")
    backbone = BackboneConfig(
        "wan",
        source.base or BASE,
        image_encoder=source.image_encoder or IMAGES,
        text_length=told.get("text_len", 512),
        prompt=PROMPT.replace("{0}", "{}"),
        state="action",
        action_rope="index",
        action_encoder="groot",
        projector=hidden,
    )
    steps = told.get("num_inference_timesteps") or 16
    model = UnifiedConfig(
        backbone=backbone,
        actions_per_token=1,
        proprio_noise=0.0,
        denoising_steps=steps,
        policy_steps=steps,
        targets=TargetConfig(future_shift=5.0, policy_shift=5.0, shared_level=True, modes=(1.0, 0.0, 0.0, 0.0)),
    )
    spec = Spec(
        cameras=cameras,
        height=height,
        width=width // len(cameras),
        proprio_dim=state,
        action_dim=action,
        chunk=chunk,
        frame_offsets=offsets,
        fps=source.fps,
    )
    found, notes = _statistics(source, {"proprio": state, "action": action})
    differs = (
        *notes,
        "it decides actions with the video: ask `joint`",
        "every chunk begins anew from the present image, as its runs on LIBERO do: earlier images are not kept",
        "no guidance by a text: DreamZero denoises video at a guidance scale of 5 against a text of what not to show",
        f"{steps} Euler steps, each computed: DreamZero takes UniPC steps, and computes 8 of 16",
        "the state's token sees all others, as it does when DreamZero acts; in its training it sees itself alone",
    )
    window = WindowConfig(chunk=chunk, frame_offsets=offsets, size=(spec.height, spec.width))
    train = TrainConfig(optimizer="adamw", lr=1e-5, warmup=1000, batch_size=16, steps=20_000)
    return Foreign(RunConfig("unified", model, window, train), spec, found, weights, differs)


def _of_robot(name: str, x: Tensor, robot: int) -> Tensor:
    """The map of one robot as a linear layer has it; other tensors as they are. Raises WamkitError for one too many."""
    stem, _, end = name.removeprefix(PREFIX).rpartition(".")
    if stem not in OWN or end not in ("W", "b"):
        return x
    if x.dim() != (3 if end == "W" else 2) or not 0 <= robot < len(x):
        raise WamkitError(f"{name} has shape {tuple(x.shape)}, and --robot is {robot}: it counts from 0")
    return x[robot].T.contiguous() if end == "W" else x[robot]


def _settings(source: Source) -> dict[str, Any]:
    """The entries of config.json that are known here, wherever they are nested."""
    found: dict[str, Any] = {}

    def gather(entry: Any) -> None:
        if isinstance(entry, Mapping):
            for key, value in entry.items():
                if isinstance(value, int) and not isinstance(value, bool):
                    found.setdefault(key, value)
            for value in entry.values():
                gather(value)

    gather(source.settings())
    return found


def _statistics(source: Source, sizes: Mapping[str, int]) -> tuple[dict[str, dict[str, list[float]]], tuple[str, ...]]:
    """Scales of state and actions by the 1st and 99th percentiles of its metadata, and what to say of them."""
    file = source.folder / "experiment_cfg" / "metadata.json"
    unscaled = {name: scales({}, name, "IDENTITY", size) for name, size in sizes.items()}
    if not file.is_file():
        return unscaled, ("no statistics came with the weights: state and actions are as the network has them",)
    try:
        robots = read_json(file)
        if len(robots) != 1:
            return unscaled, (f"{file.name} has statistics of {', '.join(sorted(robots))}: none are taken",)
        ((_, entry),) = robots.items()
        found = {}
        for name, kind in (("proprio", "state"), ("action", "action")):
            parts = entry["statistics"][kind].values()
            low, high = ([float(v) for part in parts for v in part[q]] for q in ("q01", "q99"))
            same = [a == b for a, b in zip(low, high, strict=True)]  # such a dimension is left as it is
            ends = {
                f"{name}.q01": Tensor([-1.0 if s else v for s, v in zip(same, low, strict=True)]),
                f"{name}.q99": Tensor([1.0 if s else v for s, v in zip(same, high, strict=True)]),
            }
            found[name] = scales(ends, name, "QUANTILES", sizes[name], range(len(low)))
    except (WamkitError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise WamkitError(f"{file} is not as DreamZero writes it ({error})") from error
    return found, (
        f"of {sizes['action']} dimensions of actions its robot uses the first, as many as its statistics have; those "
        "that were trained relative to the state stay so",
        "states beyond their 1st and 99th percentiles are not cut off",
    )
