"""Fast-WAM and EasyWAM-MoT: mixtures over Wan2.2-TI2V-5B whose action expert sees the present frame alone.

Both are `mot` with the program `decoupled`. Known are LeRobot's folders, and the authors' own weights once converted,
whose names differ in the order of two parts. EasyWAM embeds actions and state by two layers each.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from wamkit.nn.family_options import MoTConfig
from wamkit.nn.options import BackboneConfig, Program, TargetConfig
from wamkit.runs.config import RunConfig, TrainConfig, WindowConfig
from wamkit.runs.foreign.base import FOREIGN, Foreign, Source, renamed, scales
from wamkit.runs.foreign.wan_names import BLOCK, OUTER
from wamkit.types import Spec, WamkitError

BASE = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
PROMPT = "A video recorded from a robot's point of view executing the following instruction: {}"
STREAMS = {"video": "future", "action": "action"}
HEADS = {
    "future": {"patch_embedding": "patch_embedding", "head.head": "proj_out", "head.modulation": "scale_shift_table"},
    "action": {"action_encoder": "action.stream.embed", "head": "action.stream.head"},
}
_LAYOUTS = (
    r"mot\.layers\.(?P<i>\d+)\.blocks\.(?P<s>video|action)\.(?P<part>.+)",
    r"mot\.mixtures\.(?P<s>video|action)\.blocks\.(?P<i>\d+)\.(?P<part>.+)",
)
"""Names of blocks: LeRobot's, and those of the release."""


def our_name(name: str) -> str | None:
    """The name of a tensor in `mot`, or None for one that has no place there.

    Examples:
        >>> our_name("mot.layers.0.blocks.video.self_attn.q.weight")
        'experts.parts.future.model.blocks.0.attn1.to_q.weight'
    """
    name = name.removeprefix("model.")
    ending = re.search(r"\.(weight|bias)$", name)
    stem, end = (name[: ending.start()], ending[0]) if ending else (name, "")
    if stem == "proprio_encoder":
        return f"context.proprio{end}"
    if layer := re.fullmatch(r"state_encoder\.net\.([02])", stem):
        return f"context.proprio.{layer[1]}{end}"
    if layer := re.fullmatch(r"mot\.mixtures\.action\.action_(encoder|decoder)\.net\.([02])", stem):
        return f"action.stream.{'embed' if layer[1] == 'encoder' else 'head'}.{layer[2]}{end}"
    for layout in _LAYOUTS:
        if (found := re.fullmatch(layout, stem)) and found["part"] in BLOCK:
            return f"experts.parts.{STREAMS[found['s']]}.model.blocks.{found['i']}.{BLOCK[found['part']]}{end}"
    if found := re.fullmatch(r"mot\.mixtures\.(video|action)\.(.+)", stem):
        stream, part = STREAMS[found[1]], found[2]
        if part in OUTER:
            return f"experts.parts.{stream}.model.{OUTER[part]}{end}"
        if part in HEADS[stream]:
            ours = HEADS[stream][part] + end
            return ours if stream == "action" else f"experts.parts.future.model.{ours}"
    return None


@FOREIGN.register("fastwam")
def fastwam(source: Source) -> Foreign:
    """A run with the weights of Fast-WAM. Raises WamkitError, naming the tensor, for weights of another model."""
    return _mixture(source, "Fast-WAM", "")


@FOREIGN.register("easywam")
def easywam(source: Source) -> Foreign:
    """A run with the weights of EasyWAM-MoT on Wan2.2. Raises WamkitError as `fastwam`."""
    return _mixture(source, "EasyWAM-MoT", ".0")


def _mixture(source: Source, title: str, first: str) -> Foreign:
    """The run of either. title: for errors.   first: ending of the names of the first layers of embeddings."""
    told, tensors = source.settings(), source.tensors()
    if told.get("type", "fastwam") != "fastwam":
        raise WamkitError(f"{source.folder} holds a {told['type']!r} of LeRobot, not {title}")
    weights = dict(renamed(tensors, our_name))
    action = _tensor(weights, f"action.stream.embed{first}.weight", title)
    up = _tensor(weights, "experts.parts.action.model.blocks.0.ffn.net.0.proj.weight", title)
    state = _tensor(weights, f"context.proprio{first}.weight", title)
    size = {"proprio": state.shape[1], "action": action.shape[1]}
    horizon, every = told.get("action_horizon", 32), told.get("action_video_freq_ratio", 4)
    frames = told.get("num_video_frames", horizon + 1)
    cameras = source.cameras or tuple(sorted(_images(told))) or ("image",)
    height, width = told.get("image_size", (224, 224 * len(cameras)))
    if width % len(cameras):
        raise WamkitError(f"{len(cameras)} cameras do not share a canvas {width} pixels wide: name them by --cameras")
    schedules = [told.get(f"{s}_scheduler", {}).get("infer_shift", 5.0) for s in ("video", "action")]
    steps = told.get("num_inference_steps", 10)
    backbone = BackboneConfig(
        "wan",
        source.base or BASE,
        text_length=told.get("tokenizer_max_len", 128),
        prompt=told.get("prompt_template", PROMPT).replace("{task}", "{}"),
        state="text",
        action_rope="index",
        expert_mlp=up.shape[0],
        projector=len(action) if first else 0,
    )
    model = MoTConfig(
        backbone=backbone,
        program=Program.DECOUPLED,
        actions_per_token=1,
        action_width=up.shape[1],
        denoising_steps=steps,
        policy_steps=steps,
        targets=TargetConfig(future_shift=schedules[0], policy_shift=schedules[1]),
    )
    if not 0 < every <= frames <= 10_000:
        raise WamkitError(f"{source.folder}: {frames} frames, every {every}th of them, are no window")
    offsets = tuple(range(every, frames, every))
    window = WindowConfig(chunk=horizon, frame_offsets=offsets, size=(height, width // len(cameras)))
    spec = Spec(
        cameras=cameras,
        height=height,
        width=width // len(cameras),
        proprio_dim=size["proprio"],
        action_dim=size["action"],
        chunk=horizon,
        frame_offsets=offsets,
        fps=source.fps,
    )
    modes, statistics = told.get("normalization_mapping", {}), source.processor_statistics()
    found = {
        ours: scales(statistics, theirs, modes.get(kind, "MEAN_STD"), size[ours])
        for ours, theirs, kind in (("proprio", "observation.state", "STATE"), ("action", "action", "ACTION"))
    }
    differs = []
    if not statistics:
        differs.append("no statistics came with the weights: state and actions are as the network has them")
    if toggled := told.get("toggle_action_dimensions"):
        differs.append(f"dimensions {toggled} of actions, a gripper's, are as the network has them: LeRobot flips them")
    differs.append("images of other sizes are resized by area averaging, LeRobot's by antialiased bilinear sampling")
    train = TrainConfig(optimizer="adamw", lr=1e-4, warmup=1000, batch_size=16, steps=20_000)
    return Foreign(RunConfig("mot", model, window, train), spec, found, weights, tuple(differs))


def _tensor(weights: dict[str, Tensor], name: str, title: str) -> Tensor:
    if name not in weights:
        raise WamkitError(f"these weights hold no {name}: they are not {title}'s, or not all of them")
    return weights[name]


def _images(told: dict[str, Any]) -> list[str]:
    """Names of cameras in LeRobot's list of inputs."""
    prefix = "observation.images."
    return [name.removeprefix(prefix) for name in told.get("input_features") or {} if name.startswith(prefix)]
