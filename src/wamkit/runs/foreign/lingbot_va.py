"""LingBot-VA (Robbyant): one Wan2.2 for video and actions, autoregressive over chunks, video first.

It is `unified` with the program `video_then_action`, over kept observations. Known are the weights of its transformer,
as its authors and LeRobot release them.
"""

from __future__ import annotations

import re

from torch import Tensor

from wamkit.config import check_multiple
from wamkit.nn.family_options import UnifiedConfig
from wamkit.nn.options import BackboneConfig, Program, TargetConfig
from wamkit.runs.config import RunConfig, TrainConfig, WindowConfig
from wamkit.runs.foreign.base import FOREIGN, Foreign, Source, renamed, scales
from wamkit.types import Spec, WamkitError

BASE = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
PARTS = "trunk._all.parts.future."
OWN = {"action_embedder": "action.stream.embed", "action_proj_out": "action.stream.head"}
UNUSED = "condition_embedder_action.text_embedder."
"""A copy of the text's embedding that no forward pass reads."""
FRAMES = 4
"""Frames of a video that a latent frame holds."""


def our_name(name: str) -> str | None:
    """The name of a tensor in `unified`, or None for one that has no place there.

    Examples:
        >>> our_name("condition_embedder_action.time_proj.bias")
        'trunk._all.parts.future.acting.time_proj.bias'
    """
    name = name.removeprefix("transformer.")
    first, _, rest = name.partition(".")
    if first in OWN:
        return f"{OWN[first]}.{rest}"
    if first == "condition_embedder_action":
        return f"{PARTS}acting.{rest}"
    if first == "patch_embedding_mlp":
        return f"{PARTS}model.patch_embedding.{rest}"
    if first in ("blocks", "condition_embedder", "proj_out") or name == "scale_shift_table":
        return f"{PARTS}model.{name}"
    return None


@FOREIGN.register("lingbot_va")
def lingbot_va(source: Source) -> Foreign:
    """A run with the weights of LingBot-VA. Raises WamkitError, naming the tensor, for weights of another model."""
    told = source.settings()
    if told.get("type", "lingbot_va") != "lingbot_va":
        raise WamkitError(f"{source.folder} holds a {told['type']!r} of LeRobot, not LingBot-VA")
    tensors = {n: x for n, x in source.tensors().items() if not n.removeprefix("transformer.").startswith(UNUSED)}
    weights = dict(renamed(tensors, our_name))
    for needed in ("action.stream.embed.weight", f"{PARTS}model.patch_embedding.weight"):
        if needed not in weights:
            raise WamkitError(f"these weights hold no {needed}: they are not LingBot-VA's, or not all of them")
    patch = f"{PARTS}model.patch_embedding.weight"
    sides = tuple(told.get("patch_size", (1, 2, 2)))
    weights[patch] = _as_convolution(weights[patch], sides)
    size, used = weights["action.stream.embed.weight"].shape[1], told.get("used_action_channel_ids", [])
    if (layout := told.get("camera_layout", "width_concat")) != "width_concat" or told.get("image_hflip"):
        raise WamkitError(f"{source.folder} has its cameras in the layout {layout!r}, or mirrored: not known here")
    count, each = told.get("frame_chunk_size", 4), told.get("action_per_frame", 4)
    check_multiple("action_per_frame", each, "the frames of a latent frame", FRAMES)
    chunk, every = count * each, each // FRAMES
    offsets = tuple(range(every, chunk + 1, every))
    cameras = source.cameras or tuple(re.sub(r"^observation\.images\.", "", c) for c in told.get("obs_cam_keys", ()))
    cameras = cameras or ("image", "image2")
    backbone = BackboneConfig(
        "wan",
        source.base or told.get("wan_pretrained_path", BASE),
        text_length=told.get("max_sequence_length", 512),
        state="none",
        action_rope="frame",
    )
    model = UnifiedConfig(
        backbone=backbone,
        program=Program.VIDEO_THEN_ACTION,
        chunk_causal=True,
        actions_per_token=1,
        denoising_steps=told.get("num_inference_steps", 20),
        policy_steps=told.get("action_num_inference_steps", 50),
        targets=TargetConfig(future_shift=told.get("snr_shift", 5.0), policy_shift=told.get("action_snr_shift", 0.05)),
    )
    past = (-2 * chunk, -chunk)
    spec = Spec(
        cameras=cameras,
        height=told.get("height", 128),
        width=told.get("width", 128),
        proprio_dim=1,
        action_dim=size,
        chunk=chunk,
        frame_offsets=offsets,
        past_offsets=past,
        fps=source.fps,
    )
    found = {
        "proprio": {"mean": [0.0], "std": [1.0]},
        "action": scales(source.processor_statistics(), "action", "QUANTILES", size, used),
    }
    differs = (
        f"actions are all {size} dimensions of its own; a robot uses some: {used}",
        "it decides actions after the video: ask `joint` for that, whose actions take as many steps as the video does",
        "no guidance by a text: LingBot-VA denoises video at a guidance scale of "
        f"{told.get('guidance_scale', 5.0):g} against an empty text",
        "kept of earlier moments are observations, not the actions between them",
        "an observation needs a state of one number, which is not read",
    )
    window = WindowConfig(chunk=chunk, frame_offsets=offsets, past_offsets=past, size=(spec.height, spec.width))
    train = TrainConfig(optimizer="adamw", lr=1e-5, warmup=1000, batch_size=16, steps=20_000)
    return Foreign(RunConfig("unified", model, window, train), spec, found, weights, differs)


def _as_convolution(weight: Tensor, patch: tuple[int, ...]) -> Tensor:
    """The matrix that embeds a patch as the kernel that diffusers has for it."""
    return weight.view(len(weight), -1, *patch) if weight.dim() == 2 else weight
