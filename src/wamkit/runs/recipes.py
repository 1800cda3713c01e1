"""Recipes: functions that return a complete run. `wamkit train --recipe NAME` starts from one; options override it.

`FAMILY` is fitted to the data (`runs.fitted`): windows, sizes and steps follow from it.
`metaworld-FAMILY` is the budget of the demo on two CPU cores: equal data and steps, backbones of equal size.
`wan2.2-ti2v-5b-FAMILY`, and the like, stand on a pretrained video model, for a GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from wamkit.envs.spec import EnvSpec
from wamkit.nn.options import BackboneConfig, ImageConfig, Program, TextConfig
from wamkit.registry import Registry
from wamkit.runs.config import RunConfig, TrainConfig, WindowConfig, config_class
from wamkit.runs.targets import Targets
from wamkit.types import Target

Recipe = Callable[[], RunConfig]

RECIPES: Registry[Recipe] = Registry("recipe", "wamkit.recipes")

FOUR_TASKS = EnvSpec("metaworld", ("button-press-topdown-v3", "drawer-open-v3", "window-close-v3", "door-open-v3"))
"""The tasks of the demo."""


@dataclasses.dataclass(frozen=True)
class FittedRecipe:
    """A recipe that is completed by what the data are like, see `runs.fitted`.

    base: name of the recipe with what does not follow from data, such as the weights of losses.
    """

    base: str

    def __call__(self) -> RunConfig:
        return RECIPES.get(self.base)()

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return f"{self.base}, but windows, sizes and steps follow from the data."


TARGETS = {
    "metaworld-unified": Targets(
        FOUR_TASKS,
        {
            "closed_loop.success": Target(above=0.95),
            "closed_loop.success.*": Target(above=0.85),
            "closed_loop.latency.median": Target(below=25),
            "open_loop.skill.*": Target(above=0.65),
            "open_loop.moving_gain.*": Target(above=6),
            "open_loop.psnr.ceiling.*": Target(above=30),
            "coupling.true_over_shuffled": Target(below=0.8),
            "coupling.inverse_over_policy": Target(below=1),
            "counterfactuals.*.skill": Target(above=0),
            "counterfactuals.*.regret": Target(below=1),
            "counterfactuals.*.direction": Target(above=0),
            "forecast_consistency.skill": Target(above=0),
        },
    ),
    "metaworld-cascade_geom": Targets(FOUR_TASKS, {"open_loop.point_error.*": Target(below=0.5)}),
}
"""Targets of recipes, by name, for their own budget in their own tasks."""

FUTURE_2 = TrainConfig(weights=(("future", 2.0),))
"""Futures weigh twice: they are the harder part, and actions lose nothing by it."""

HISTORY = WindowConfig(past_offsets=(-32, -24, -16, -8))
"""Four earlier moments, as far apart as the queries of a policy."""

VIDEO_MODELS = {
    "wan2.2-ti2v-5b": ("wan", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
    "wan2.1-t2v-1.3b": ("wan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
    "cosmos-predict2-2b": ("cosmos", "nvidia/Cosmos-Predict2-2B-Video2World"),
}
"""Pretrained video models of recipes: their kind, and their id on the Hub."""
ON_VIDEO_MODELS = ("unified", "mot", "hidden_state", "world_model", "cascade_idm", "bc")
"""Families that have a recipe on each of them."""
VIDEO_WINDOW = WindowConfig(chunk=32, frame_offsets=tuple(range(4, 33, 4)), size=(224, 224))
"""Windows of Fast-WAM: eight frames ahead, four actions a frame."""
VIDEO_TRAIN = TrainConfig(
    steps=20_000,
    batch_size=16,
    lr=1e-4,
    warmup=1000,
    ema=0.9999,
    optimizer="adamw",
    precision="bf16",
    save_every=1000,
)
"""Training of a pretrained video model, on one GPU: `--train.device` names it."""


def _model(family: str, **options: Any) -> Any:
    return config_class(family)(**options)


@RECIPES.register("metaworld-unified")
def metaworld_unified() -> RunConfig:
    """The main job: a World Action Model that learns four MetaWorld tasks in minutes on two CPU cores."""
    return RunConfig("unified", _model("unified"), WindowConfig(), FUTURE_2)


@RECIPES.register("metaworld-unified-chunk_causal")
def metaworld_unified_chunk_causal() -> RunConfig:
    """The same with a history: four earlier moments, each encoded once and kept in memory (DreamZero)."""
    return RunConfig("unified", _model("unified", chunk_causal=True), HISTORY, FUTURE_2)


@RECIPES.register("unified-mixture")
def unified_mixture() -> RunConfig:
    """One model for several embodiments and for video without actions, as `wamkit mix` writes them."""
    train = dataclasses.replace(FUTURE_2, steps=5000, batch_size=24)
    return RunConfig("unified", _model("unified"), WindowConfig(), train)


@RECIPES.register("metaworld-bc")
def metaworld_bc() -> RunConfig:
    """The control: behaviour cloning with the same trunk, head, data and budget, and no imagination."""
    return RunConfig("bc", _model("bc"), WindowConfig(), TrainConfig())


@RECIPES.register("metaworld-world_model")
def metaworld_world_model() -> RunConfig:
    """The other control: forward dynamics alone, without a policy."""
    return RunConfig("world_model", _model("world_model"), WindowConfig(), TrainConfig())


@RECIPES.register("metaworld-inverse")
def metaworld_inverse() -> RunConfig:
    """A reader of video, for `wamkit label`: inverse dynamics alone, and the state, off images (VPT)."""
    return RunConfig("inverse", _model("inverse"), WindowConfig(), TrainConfig())


@RECIPES.register("metaworld-mot")
def metaworld_mot() -> RunConfig:
    """One expert a stream, one attention (Motus, DUST, LingBot-VA)."""
    return RunConfig("mot", _model("mot"), WindowConfig(), FUTURE_2)


@RECIPES.register("metaworld-mot-chunk_causal")
def metaworld_mot_chunk_causal() -> RunConfig:
    """The same with a history, and actions decoded from a future that goes first (LingBot-VA)."""
    model = _model("mot", chunk_causal=True, program=Program.VIDEO_THEN_ACTION)
    return RunConfig("mot", model, HISTORY, FUTURE_2)


@RECIPES.register("metaworld-hidden_state")
def metaworld_hidden_state() -> RunConfig:
    """Features of one video pass condition a small action head, trained together (Fast-WAM)."""
    return RunConfig("hidden_state", _model("hidden_state"), WindowConfig(), FUTURE_2)


@RECIPES.register("metaworld-hidden_state-detached")
def metaworld_hidden_state_detached() -> RunConfig:
    """The same, cascaded: the video expert first, then a head that only reads it (VPP, mimic-video)."""
    return RunConfig("hidden_state", _model("hidden_state", detach=True), WindowConfig(), FUTURE_2)


@RECIPES.register("metaworld-shared_rep")
def metaworld_shared_rep() -> RunConfig:
    """One masked representation without noise, light diffusion heads (UVA)."""
    return RunConfig("shared_rep", _model("shared_rep"), WindowConfig(), FUTURE_2)


@RECIPES.register("metaworld-query_ar")
def metaworld_query_ar() -> RunConfig:
    """Learned queries read action and future off a step-causal history (GR-1)."""
    window = WindowConfig(past_offsets=(-16, -8))
    return RunConfig("query_ar", _model("query_ar"), window, FUTURE_2)


@RECIPES.register("metaworld-align")
def metaworld_align() -> RunConfig:
    """A middle layer predicts the features of the future under a teacher (FLARE)."""
    weights = (("align_ema", 0.2),)
    return RunConfig("align", _model("align"), WindowConfig(), TrainConfig(weights=weights))


@RECIPES.register("metaworld-jepa")
def metaworld_jepa() -> RunConfig:
    """Predictive latents of a following encoder, flow-matched actions (VLA-JEPA)."""
    weights = (("latent", 0.1), ("spread", 0.1))
    return RunConfig("jepa", _model("jepa"), WindowConfig(), TrainConfig(weights=weights))


@RECIPES.register("metaworld-cascade_idm")
def metaworld_cascade_idm() -> RunConfig:
    """A planner predicts the frames, an inverse dynamics model reads the actions off them (UniPi, Vidar)."""
    return RunConfig("cascade_idm", _model("cascade_idm"), WindowConfig(), TrainConfig())


@RECIPES.register("metaworld-cascade_geom")
def metaworld_cascade_geom() -> RunConfig:
    """A planner predicts the flow of scene points; rigid motions become waypoints (AVDC, Im2Flow2Act, 3DFlowAction)."""
    return RunConfig("cascade_geom", _model("cascade_geom"), WindowConfig(), TrainConfig())


@RECIPES.register("metaworld-latent_action")
def metaworld_latent_action() -> RunConfig:
    """Latent actions learned from video alone, then actions read off them (LAPA, villa-X)."""
    return RunConfig("latent_action", _model("latent_action"), WindowConfig(), TrainConfig())


@RECIPES.register("metaworld-discrete")
def metaworld_discrete() -> RunConfig:
    """Text, images and actions as tokens of one vocabulary, decoded one after the other (WorldVLA, CoT-VLA)."""
    return RunConfig("discrete", _model("discrete"), WindowConfig(), TrainConfig())


@RECIPES.register("metaworld-discrete-parallel")
def metaworld_discrete_parallel() -> RunConfig:
    """The same tokens, filled in by mask diffusion in rounds (UD-VLA)."""
    return RunConfig("discrete", _model("discrete", decode="parallel"), WindowConfig(), TrainConfig())


def on_video_model(family: str, name: str) -> RunConfig:
    """A family on the pretrained video model called `name`."""
    kind, path = VIDEO_MODELS[name]
    options: dict[str, Any] = {"backbone": BackboneConfig(kind, path), "actions_per_token": 1}
    known = config_class(family).__dataclass_fields__
    options |= {"action_width": 1024} if "action_width" in known else {}
    model = _model(family, **{k: v for k, v in options.items() if k in known})
    return RunConfig(family, model, VIDEO_WINDOW, VIDEO_TRAIN)


def targets_of(run: RunConfig) -> Targets:
    """The targets of the recipe that `run` is, whatever its seed, threads and logging; none for anything else."""
    for name, targets in TARGETS.items():
        recipe = RECIPES.get(name)()
        free: dict[str, Any] = {k: getattr(run.train, k) for k in ("seed", "threads", "save_every", "log_every")}
        if run == dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, **free)):
            return targets
    return Targets()


for _name in [n for n in RECIPES.names() if n.startswith("metaworld-")]:
    RECIPES.register(_name.removeprefix("metaworld-"))(FittedRecipe(_name))


@RECIPES.register("dinov3-align")
def dinov3_align() -> RunConfig:
    """Frozen DINOv3 features as context and as what is foreseen, 33 M parameters, for a GPU (as GAWM-S)."""
    model = _model(
        "align",
        width=512,
        depth=10,
        heads=8,
        image=ImageConfig("pretrained", "facebook/dinov3-vits16-pretrain-lvd1689m"),
        image_stride=32,
        text=TextConfig("pretrained", model="sentence-transformers/all-MiniLM-L6-v2"),
        teachers=("pretrained",),
        actions_per_token=1,
    )
    train = dataclasses.replace(VIDEO_TRAIN, batch_size=64, lr=1e-3, weights=(("align_pretrained", 0.2),))
    window = WindowConfig(chunk=16, frame_offsets=(8, 16), size=(224, 224))
    return RunConfig("align", model, window, dataclasses.replace(train, steps=60_000, optimizer="muon"))


for _base in VIDEO_MODELS:
    for _family in ON_VIDEO_MODELS:

        def _on_video_model(family: str = _family, name: str = _base) -> RunConfig:
            return on_video_model(family, name)

        _on_video_model.__doc__ = f"{_family} on {VIDEO_MODELS[_base][1]}, for a GPU."
        RECIPES.register(f"{_base}-{_family}")(_on_video_model)
