"""What lerobot itself does with a data set; runs in an environment that has lerobot (see benchmarks/interop.py).

python with_lerobot.py read ROOT OUT.npz          every value and pixel of every frame, through LeRobotDataset
python with_lerobot.py write ROOT SOURCE.npz KIND...
records the pictures and numbers of SOURCE.npz as a new data set: "video" or "image"
                                                  for each camera
python with_lerobot.py delete ROOT NEW_ROOT       lerobot's editing tool: a copy without episode 0
python with_lerobot.py merge ROOT NEW_ROOT        lerobot's editing tool: the data set twice over
"""

import importlib.util
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
if not importlib.util.find_spec("torchvision"):
    sys.path.insert(0, str(Path(__file__).parent / "stand_in"))

import numpy as np  # noqa: E402
from lerobot.datasets.aggregate import aggregate_datasets  # noqa: E402
from lerobot.datasets.dataset_tools import delete_episodes  # noqa: E402
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402


def load(root):
    return LeRobotDataset("local/" + Path(root).name, root=root, video_backend="pyav")


def read(root, out):
    """Writes {column: array} for all frames; pictures as uint8, `task` as text.

    Of annotations it writes `subtask`, the one that lerobot takes to be active, "" where none is.
    """
    data = load(root)
    columns = {}
    for i in range(len(data)):
        item = data[i]
        if "language_persistent" in item:
            item["subtask"] = active_subtask(item)
        for key, value in item.items():
            if key.startswith("language_"):
                continue
            value = value.numpy() if hasattr(value, "numpy") else np.array(value)
            if key in data.meta.camera_keys and value.dtype.kind == "f" and len(value) == 3:
                value = np.rint(value * 255).astype(np.uint8)
            columns.setdefault(key, []).append(value)
    np.savez(out, **{key: np.stack(values) for key, values in columns.items()})


def active_subtask(item):
    from lerobot.datasets.language_render import active_at

    row = active_at(float(item["timestamp"]), persistent=item["language_persistent"], style="subtask")
    return row["content"] if row else ""


def write(root, source, *kinds):
    with np.load(source) as file:
        images, state, action, episode, text = (file[k] for k in ("images", "state", "action", "episode", "text"))
    features = {
        "observation.state": {"dtype": "float32", "shape": state.shape[1:], "names": None},
        "action": {"dtype": "float32", "shape": action.shape[1:], "names": None},
    }
    cameras = [f"observation.images.cam{v}" for v in range(images.shape[1])]
    names = ["height", "width", "channels"]
    shape = (*images.shape[3:], 3)
    features |= {c: {"dtype": k, "shape": shape, "names": names} for c, k in zip(cameras, kinds, strict=True)}
    data = LeRobotDataset.create("local/written", fps=20, features=features, root=root, robot_type="test")
    for i, number in enumerate(episode):
        pictures = {c: images[i, v].transpose(1, 2, 0) for v, c in enumerate(cameras)}
        data.add_frame({"observation.state": state[i], "action": action[i], "task": str(text[i]), **pictures})
        if i + 1 == len(episode) or episode[i + 1] != number:
            data.save_episode()
    data.finalize()


def delete(root, new_root):
    delete_episodes(load(root), [0], output_dir=new_root, repo_id="local/" + Path(new_root).name)


def merge(root, new_root):
    name = "local/" + Path(root).name
    aggregate_datasets([name, name], "local/merged", roots=[Path(root), Path(root)], aggr_root=Path(new_root))


if __name__ == "__main__":
    {"read": read, "write": write, "delete": delete, "merge": merge}[sys.argv[1]](*sys.argv[2:])
