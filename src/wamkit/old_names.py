"""Names in files of earlier versions, and their present names. No other module knows both."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

MODEL = {"draws": "targets"}
"""Fields of a family's configuration."""
BACKBONE: Mapping[str, Any] = {
    "name": "transformer",
    "path": "",
    "freeze": False,
    "lora": {"rank": 0, "alpha": 0.0},
    "text_length": 128,
    "prompt": "{}",
    "image_encoder": "",
    "state": "token",
    "action_rope": "grid",
    "action_encoder": "linear",
    "expert_mlp": 4096,
    "projector": 0,
}
"""The backbone of all families before one could be chosen. Earlier versions wrote its name alone, or some fields."""
RUN_ADDED = ("origins", "image", "optional_views", "plugins", "metadata", "held_out")
"""Parts of a run's configuration that it has since, and that others imply."""
PART_ADDED: Mapping[str, Mapping[str, Any]] = {
    "model": {
        "backbone": BACKBONE,
        "codec": "frame_codec",
        "image": {"kind": "cells", "model": ""},
        "image_stride": 16,
        "policy_draws": 1,
        "joint_share": 1.0,
        "text_dropout": 0.0,
    },
    "window": {"size": None},
    "train": {
        "normalisation": "mean_std",
        "prefix": 0,
        "checkpoint_activations": False,
        "compile": False,
        "replicas": 1,
    },
    "episodes": {"held_out": 0, "held_out_seed": 0},
    "provenance": {"action_bounds": [], "hub": ""},
}
"""Fields that parts of a run's configuration have since, with the values that stand for what was there before."""
TARGETS_ADDED = {"policy_shift": 1.0}
"""Fields that `targets` in a family's configuration has since."""
SPEC = {"points": "point_grid"}
"""Fields of `wamkit.Spec`."""
ENV_OPTIONS = {"points": "point_grid", "drawn": "render_size"}
"""Options of environments."""
COLLECT = {
    "near_misses": "perturbed_experts",
    "near_miss_offset": "perturbed_offset",
    "near_miss_steps": "perturbed_steps",
}
"""Fields of `collect.json`."""


def renamed(data: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, Any]:
    """`data` with the keys that `table` knows under their present names, in the order of `data`."""
    return {table.get(k, k): v for k, v in data.items()}


def collected(data: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `collect.json`, its environment's options included, under present names."""
    data = renamed(data, COLLECT)
    return data | {"options": renamed(data["options"], ENV_OPTIONS)} if "options" in data else data


def model(data: Mapping[str, Any]) -> dict[str, Any]:
    """A family's configuration under present names."""
    data = renamed(data, MODEL)
    if (backbone := data.get("backbone")) is None:
        return data
    return data | {"backbone": {**BACKBONE, **({"name": backbone} if isinstance(backbone, str) else backbone)}}


def run_config(data: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run, as a checkpoint and config.json hold it, under present names."""
    data = renamed(data, {"robots": "embodiments"})
    if "model" in data:
        data["model"] = model(data["model"])
    if "spec" in data:
        data["spec"] = renamed(data["spec"], SPEC)
    if (source := data.pop("source", None)) is not None:
        data["provenance"] = _provenance(source)
    if "embodiments" in data and "normalisation" not in data.get("train", {}):
        own = data.get("mixture", {}).get("normalisers", {})
        data["embodiments"] = _slots_changed(data["embodiments"], lambda slot: _with_constants(slot, own))
    return data


def _slots_changed(
    embodiments: Mapping[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Embodiments by name, with what `change` makes of every slot of theirs."""
    return {
        name: {**e, **{part: [change(dict(slot)) for slot in e.get(part, ())] for part in ("state", "action")}}
        for name, e in embodiments.items()
    }


def _with_constants(slot: dict[str, Any], own: Mapping[str, str]) -> dict[str, Any]:
    """A slot whose constant dimensions have the scale 0.

    They had 1, which no deviation of measured values is. Of a range it may be, so grippers are left as they are.
    """
    field = slot.get("field", {})
    usual = "min_max" if field.get("kind") == "gripper" else "mean_std"
    if own.get(field.get("name"), own.get(field.get("kind"), usual)) == "mean_std":
        slot["scale"] = [0.0 if x == 1.0 else x for x in slot.get("scale", ())]
    return slot


def _without_neutral(slot: Mapping[str, Any]) -> dict[str, Any]:
    """A slot without the entries that there are since and that say nothing in it."""
    out = {k: v for k, v in slot.items() if k not in ("limit", "turned") or v}
    if "field" in out:
        out["field"] = {k: v for k, v in out["field"].items() if k not in ("larger", "reference") or v}
    return out


def without_added(data: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run without fields that earlier versions lack, where these have the values of before.

    Finished results are keyed by it, and runs are resumed by it.
    """
    out = {k: v for k, v in data.items() if k not in RUN_ADDED}
    for part, added in PART_ADDED.items():
        if part in out:
            out[part] = _without(out[part], added)
    if "targets" in out.get("model", {}):
        out["model"] = {**out["model"], "targets": _without(out["model"]["targets"], TARGETS_ADDED)}
    if "embodiments" in out:  # `locked` follows from the data
        kept = {n: {k: v for k, v in e.items() if k != "locked"} for n, e in out["embodiments"].items()}
        out["embodiments"] = _slots_changed(kept, _without_neutral)
    return out


def _without(part: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """`part` without the fields `added`, where these have the values of before. Empty lists and tuples are equal."""
    return {k: v for k, v in part.items() if k not in added or not (v == added[k] or (not v and not added[k]))}


def is_measured_otherwise(embodiment: Mapping[str, Any]) -> bool:
    """True for an embodiment of a version that left out the ends of episodes where it measured actions.

    A run that it began goes on with the values that it has.
    """
    return "locked" not in embodiment


def source(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance in the flat form under which finished results are keyed: the inverse of what `run_config` does."""
    env = dict(provenance["env"])
    flat = {"env": env["env"], "options": options(env["options"]), "tasks": env["tasks"]}
    flat |= {"robot": env["embodiment"]} if env["embodiment"] else {}
    return flat | {k: v for k, v in _without(provenance, PART_ADDED["provenance"]).items() if k != "env"}


def options(present: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an environment under the names by which finished results are keyed."""
    return renamed(present, {new: old for old, new in ENV_OPTIONS.items()})


def _provenance(source: Mapping[str, Any]) -> dict[str, Any]:
    env = {k: source[k] for k in ("env", "tasks") if k in source}
    env |= {"options": renamed(source.get("options", {}), ENV_OPTIONS), "embodiment": source.get("robot", "")}
    return {"env": env} | {k: v for k, v in source.items() if k not in ("env", "tasks", "options", "robot")}


_FIGURES: Mapping[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "Does it solve the tasks?": (
        "closed_loop",
        (("all tasks", "success"), ("one query, median", "latency.median"), ("(.+)", r"success.\1")),
    ),
    "Is what it imagines right?": (
        "open_loop",
        (
            (r"(\w+), \+(\d+): skill over copying", r"skill.\1.\2"),
            (r"(\w+), \+(\d+): on moving pixels", r"moving_gain.\1.\2"),
            (r"(\w+), \+(\d+): sharpness", r"sharpness.\1.\2"),
            (r"ceiling of the codec, \+(\d+)", r"psnr.ceiling.\1"),
            (r"scene points, \+(\d+): error / standing still", r"point_error.\1"),
        ),
    ),
    "Do picture and action belong together?": (
        "coupling",
        (
            ("forward dynamics, true / shuffled actions", "true_over_shuffled"),
            ("inverse dynamics / policy, action error", "inverse_over_policy"),
        ),
    ),
    "Are its clips like real ones, as a set?": (
        "clip_distribution",
        (("mmd@(.+)", r"mmd.\1"), (r"frechet\d*@(.+), over its floor", r"frechet.\1")),
    ),
    "Do pretrained encoders see it so?": (
        "pretrained_features",
        ((r"MMD \((.+)\)", r"mmd.\1"), (r"(?:FVD|Fréchet) \((.+)\)", r"frechet.\1")),
    ),
    "Does it break the laws of physics?": (
        "physics",
        (
            ("things that vanish", "lost"),
            ("things that vanish after being hidden", "lost_again"),
            ("things from nowhere", "invented"),
            ("change of size", "size_drift"),
            ("places, mean error", "ade"),
            ("jumps", "teleports"),
            ("moves before it is touched", "premature"),
            ("is touched and does not move", "missed"),
            ("when it begins to move, error", "lag"),
            ("one inside another", "penetration_rate"),
            ("how deep", "penetration_depth"),
            ("fall, error of acceleration", "gravity"),
            ("hangs in the air", "levitation"),
            ("energy from nothing", "energy_gain"),
            ("momentum lost or won in collisions", "momentum"),
            ("contacts at the wrong time", "contact_f1_error"),
        ),
    ),
    "Does it move what moves, where and when?": (
        "motion",
        (
            ("where", "spatial"),
            ("where and when", "spatiotemporal"),
            ("where and how much", "weighted"),
            ("Physics-IQ's score", "physics_iq"),
        ),
    ),
    "Does it imagine what its actions do?": (
        "counterfactuals",
        tuple(
            (f"{old}: {figure}", f"{kind}.{key}")
            for old, kind in (("expert's chunks", "expert"), ("other actions", "off_expert"))
            for figure, key in (
                ("told apart", "identified"),
                ("skill over copying", "skill"),
                ("regret of choosing by imagination", "regret"),
                ("direction", "direction"),
                ("gain", "gain"),
                ("drift when nothing is done", "drift"),
            )
        ),
    ),
    "The video, the arm, or both?": ("forecast_vs_execution", ()),
    "Can actions be read off its pictures?": (
        "action_recoverability",
        (
            ("floor: .+", "floor"),
            ("imagined for given actions / real", "forward"),
            ("imagined along with its actions / real", "joint"),
        ),
    ),
    "Does the world go as it imagined?": (
        "forecast_consistency",
        (
            ("skill of its foresight", "skill"),
            ("success foretold by foresight", "auc.skill"),
            ("success foretold by motion alone", "auc.motion"),
        ),
    ),
}
"""Title of a table -> its key, and names of its rows as patterns -> their keys. Reports had titles and names alone."""


def _figure(table: str, name: str) -> str | None:
    key, rows = _FIGURES.get(table, (table, ()))
    found = ((re.fullmatch(pattern, name), form) for pattern, form in rows)
    return next((f"{key}.{match.expand(form)}" for match, form in found if match), None)


def figure(table: str, name: str) -> str:
    """Key of a figure in a summary.json without keys; made of its title and name where these are not known."""
    return _figure(table, name) or f"{_FIGURES.get(table, (table,))[0]}.{name}"


def job(data: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a comparison's job file, with figures under their keys instead of their names, and `outcomes`."""
    tables = ("Is what it imagines right?", "Do picture and action belong together?")
    key = {name: next(filter(None, (_figure(t, name) for t in tables)), name) for name in data["figures"]}
    figures = {key[name]: value for name, value in data["figures"].items()}
    episodes = {task: renamed(played, {"solved": "outcomes"}) for task, played in data["episodes"].items()}
    return {**data, "figures": figures, "episodes": episodes}
