"""Makes data sets in many variants with the lerobot package itself, and reads each of them back with it.

Runs in an environment that has lerobot, 0.4 or 0.6 (see benchmarks/interop.py):

    python lerobot_variants.py FOLDER [NAME...]

writes FOLDER/NAME, a data set, and FOLDER/NAME.npz with every value and pixel that lerobot reads of it, or
FOLDER/NAME.txt with the error that it raises instead.
"""

import importlib.util
import os
import sys
import traceback
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
if not importlib.util.find_spec("torchvision"):
    sys.path.insert(0, str(Path(__file__).parent / "stand_in"))

import lerobot  # noqa: E402
import numpy as np  # noqa: E402
from lerobot.datasets import dataset_tools as tools  # noqa: E402
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402
from with_lerobot import load, read  # noqa: E402

NEW = tuple(int(x) for x in lerobot.__version__.split(".")[:2]) >= (0, 6)
FPS, AXES = 10, ["height", "width", "channels"]
LENGTHS = (7, 5, 9)
FLOAT = {"dtype": "float32", "shape": (4,), "names": None}
VIDEO = {"dtype": "video", "shape": (48, 64, 3), "names": AXES}
IMAGE, TOP = VIDEO | {"dtype": "image"}, "observation.images.top"
PLAIN = {"observation.state": FLOAT, "action": FLOAT}


def drawn(feature, rng, step):
    """A value of a feature; an image is a gradient with a square that moves."""
    kind, shape = feature["dtype"], feature["shape"]
    if kind == "string":
        return f"phase {step // 3}"
    if kind in ("video", "image"):
        first = shape[0] in (1, 3)
        (height, width), channels = (shape[1:] if first else shape[:2]), shape[0] if first else shape[2]
        if channels == 1:
            x = (1000 + 50 * step + np.arange(width)[None].repeat(height, 0)).astype(np.uint16)[..., None]
        else:
            x = np.zeros((height, width, 3), np.uint8)
            x[..., 0], x[..., 1] = np.linspace(0, 120, width), np.linspace(0, 120, height)[:, None]
            x[8:20, 4 * step : 4 * step + 12] = 255, 40 + 5 * step, 20
        return x.transpose(2, 0, 1) if first else x
    if kind == "bool":
        return rng.random(shape) < 0.5
    if kind.startswith(("int", "uint")):
        return rng.integers(0, 100, shape).astype(kind)
    return rng.normal(size=shape).astype(kind)


def record(root, features, lengths=LENGTHS, tasks=("push the block",), times=None, settings=None, **more):
    """Records episodes. times: (episode, steps) -> timestamps. settings: of the sizes of files."""
    create = {"fps": FPS, "robot_type": "so101"} | more
    data = LeRobotDataset.create(f"local/{root.name}", features=features, root=root, **create)
    if settings:
        data.meta.update_chunk_settings(**settings)
    fill(data, features, lengths, tasks, times)
    data.finalize()


def fill(data, features, lengths, tasks, times=None):
    rng = np.random.default_rng(0)
    for episode, steps in enumerate(lengths):
        text = tasks[episode % len(tasks)]
        for step in range(steps):
            frame = {k: drawn(f, rng, step) for k, f in features.items()}
            data.add_frame(frame | {"task": text if isinstance(text, str) else text[step * len(text) // steps]})
        if times is not None:
            buffer = data.writer.episode_buffer if NEW else data.episode_buffer
            buffer["timestamp"] = list(times(episode, steps))
        data.save_episode()


def codec(name, **more):
    """Arguments of `create` that choose the video codec."""
    if NEW:
        from lerobot.configs import RGBEncoderConfig

        return {"rgb_encoder": RGBEncoderConfig(vcodec=name, **more)}
    return {"vcodec": name}


def late(episode, steps):
    """A hardware clock: jitter of 12 ms, and a gap of 0.7 s."""
    times = np.arange(steps) / FPS + np.random.default_rng(episode).normal(0, 0.012, steps)
    times[4:] += 0.7
    return times


def edited(root, tool):
    """A copy of a recording by one of lerobot's editing tools. The copy is the data set in `root`."""
    source = root.with_name(f"{root.name}-source")
    record(source, PLAIN | {TOP: VIDEO, "phase": {"dtype": "string", "shape": (1,), "names": None}})
    tool(load(source), root)


def again(data, root):
    """The data set twice over."""
    tools.merge_datasets([data, load(data.root)], "local/merged", output_dir=root)


def widened(data, root):
    values = np.arange(len(data), dtype=np.float64)
    more = {"force": (values, {"dtype": "float64", "shape": (1,), "names": None})}
    tools.add_features(data, more, output_dir=root, repo_id="local/more")


def appended(root):
    """A recording that was continued later."""
    record(root, PLAIN | {TOP: VIDEO})
    data = LeRobotDataset.resume("local/again", root=root) if NEW else LeRobotDataset("local/again", root=root)
    fill(data, PLAIN | {TOP: VIDEO}, (4, 6), ("pull the block",))
    data.finalize()


def types(kinds, **more):
    return {k: {"dtype": d, "shape": s, "names": None} for k, (d, s) in kinds.items()} | more


def annotated(root):
    """Annotations of all kinds by lerobot's own writer, in two of three episodes."""
    from lerobot.annotations.steerable_pipeline.reader import iter_episodes
    from lerobot.annotations.steerable_pipeline.staging import EpisodeStaging
    from lerobot.annotations.steerable_pipeline.writer import LanguageColumnsWriter, speech_atom
    from lerobot.datasets.io_utils import load_info, write_info
    from lerobot.datasets.language import language_feature_info

    record(root, PLAIN | {TOP: VIDEO, "observation.images.depth": DEPTH}, tasks=("push the block", "pull the block"))
    staged, episodes = root.with_name(f"{root.name}-staged"), list(iter_episodes(root))
    for episode in episodes[:2]:
        times = episode.frame_timestamps
        says = lambda style, text, t, role="assistant", **more: (  # noqa: E731
            {"role": role, "content": text, "style": style, "timestamp": t} | more
        )
        plan = [
            says("task_aug", "move it", times[0], "user"),
            says("plan", "1. reach 2. push", times[0]),
            says("subtask", "reach", times[1]),
            says("subtask", "push", times[3]),
            says("motion", "forwards", times[2]),
            says("memory", "reached", times[3]),
        ]
        spoken = [says("interjection", "wait", times[2], "user"), speech_atom(times[2], "waiting")]
        asked = [says("vqa", "where?", times[1], "user", camera=TOP)]
        staging = EpisodeStaging(staged, episode.episode_index)
        for module, rows in (("plan", plan), ("interjections", spoken), ("vqa", asked)):
            staging.write(module, rows)
    LanguageColumnsWriter().write_all(episodes, staged, root)
    info = load_info(root)
    info.features = {**info.features, **language_feature_info()}
    write_info(info, root)


VARIANTS = {
    "plain": lambda r: record(r, PLAIN | {TOP: VIDEO}),
    "float64": lambda r: record(
        r, types({"observation.state": ("float64", (4,)), "action": ("float64", (3,))}, **{TOP: VIDEO})
    ),
    "integer-vectors": lambda r: record(
        r, types({"observation.state": ("int64", (4,)), "action": ("int32", (3,))}, **{TOP: VIDEO})
    ),
    "one-dimension": lambda r: record(
        r, types({"observation.state": ("float32", (1,)), "action": ("float32", (1,))}, **{TOP: VIDEO})
    ),
    "more-columns": lambda r: record(
        r,
        PLAIN
        | types(
            {
                "observation.touch": ("bool", (2,)),
                "observation.ticks": ("int16", (5,)),
                "observation.level": ("uint8", (1,)),
                "observation.matrix": ("float32", (3, 3)),
                "observation.cube": ("float64", (2, 2, 2)),
                "next.reward": ("float32", (1,)),
                "next.done": ("bool", (1,)),
                "phase": ("string", (1,)),
            }
        ),
    ),
    "names": lambda r: record(
        r,
        {
            "observation.state": FLOAT | {"names": {"motors": list("abcd")}},
            "action": FLOAT | {"names": list("abcd")},
            TOP: VIDEO | {"shape": (3, 48, 64), "names": ["channels", "height", "width"]},
        },
    ),
    "small-files": lambda r: record(
        r,
        PLAIN | {TOP: VIDEO},
        (6, 5, 4, 3, 2),
        settings={"chunks_size": 2, "data_files_size_in_mb": 0.001, "video_files_size_in_mb": 0.001},
    ),
    "h264": lambda r: record(r, PLAIN | {TOP: VIDEO}, **codec("h264")),
    "hevc": lambda r: record(r, PLAIN | {TOP: VIDEO}, **codec("hevc")),
    "av1": lambda r: record(r, PLAIN | {TOP: VIDEO}, **codec("libsvtav1")),
    "streaming": lambda r: record(r, PLAIN | {TOP: VIDEO}, streaming_encoding=True),
    "fps-30": lambda r: record(r, PLAIN | {TOP: VIDEO}, (40, 31, 17), fps=30),
    "fps-15-many": lambda r: record(r, PLAIN | {TOP: VIDEO}, (3,) * 23, fps=15),
    "images": lambda r: record(r, PLAIN | {TOP: IMAGE}, use_videos=False),
    "image-and-video": lambda r: record(r, PLAIN | {TOP: IMAGE, "observation.images.wrist": VIDEO}),
    "without-images": lambda r: record(r, PLAIN),
    "without-actions": lambda r: record(r, {"observation.state": FLOAT, TOP: VIDEO}),
    "several-tasks": lambda r: record(r, PLAIN | {TOP: VIDEO}, tasks=("push", ("open", "close", "open"), "push")),
    "empty-text": lambda r: record(r, PLAIN | {TOP: VIDEO}, tasks=("", "push", "push")),
    "all-texts-empty": lambda r: record(r, PLAIN | {TOP: VIDEO}, tasks=("",)),
    "one-step": lambda r: record(r, PLAIN | {TOP: VIDEO}, (1, 6, 1, 1)),
    "jitter": lambda r: record(r, PLAIN | {TOP: VIDEO}, times=lambda e, n: np.arange(n) / FPS + 4e-5 * (-1) ** e),
    "clock": lambda r: record(r, PLAIN | {TOP: VIDEO}, times=late),
    "clock-without-video": lambda r: record(r, PLAIN | {TOP: IMAGE}, times=late),
    "deleted": lambda r: edited(r, lambda d, to: tools.delete_episodes(d, [1], output_dir=to, repo_id="local/less")),
    "first-deleted": lambda r: edited(r, lambda d, to: tools.delete_episodes(d, [0], output_dir=to, repo_id="l/less")),
    "split": lambda r: edited(r, lambda d, to: tools.split_dataset(d, {"a": [2, 0], "b": [1]}, output_dir=to)),
    "merged": lambda r: edited(r, again),
    "columns-added": lambda r: edited(r, widened),
    "column-removed": lambda r: edited(
        r, lambda d, to: tools.remove_feature(d, "phase", output_dir=to, repo_id="local/fewer")
    ),
    "tasks-modified": lambda r: edited(
        r, lambda d, to: (tools.modify_tasks(d, new_task="lift it", episode_tasks={1: "drop it"}), d.root.rename(to))
    ),
    "appended": appended,
}
if NEW:
    VARIANTS["language-and-depth"] = annotated
    DEPTH = {"dtype": "video", "shape": (48, 64, 1), "names": AXES, "info": {"is_depth_map": True}}
    VARIANTS["depth-video"] = lambda r: record(r, PLAIN | {TOP: VIDEO, "observation.images.depth": DEPTH})
    VARIANTS["depth-images"] = lambda r: record(
        r, PLAIN | {TOP: IMAGE, "observation.images.depth": DEPTH | {"dtype": "image"}}, use_videos=False
    )


def main(folder, *names):
    for name in names or VARIANTS:
        root = Path(folder) / name
        try:
            VARIANTS[name](root)
        except Exception:
            root.with_suffix(".txt").write_text(f"not made: {traceback.format_exc()[-1500:]}")
            continue
        for part in sorted(root.glob("*")) if not (root / "meta").exists() else [root]:
            try:
                read(part, Path(folder) / f"{part.relative_to(folder).as_posix().replace('/', '-')}.npz")
            except Exception:
                root.with_suffix(".txt").write_text(f"not read: {traceback.format_exc()[-1500:]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
