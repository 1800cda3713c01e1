r"""Interoperability with lerobot: each reads what the other writes, and every value and pixel is compared.

lerobot runs in environments of its own, one for each version, which `make interop` sets up:

    python benchmarks/interop.py --python .venv-lerobot/bin/python .venv-lerobot06/bin/python

Each of them also makes data sets in over 30 variants (tests/interop/lerobot_variants.py), with depth maps and
annotations where it knows these. What lerobot reads of one, wamkit must read as the same values, frames and texts.

Prints one line a comparison and exits with status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from wamkit.data.format.store import Store
from wamkit.data.format.video import encode_video
from wamkit.errors import WamkitError
from wamkit.types import Episode, Snapshot, Span

INTEROP = Path(__file__).parents[1] / "tests/interop"
UNREAD = ("phase",)
"""Columns of texts in the variants: wamkit reads numbers, images and instructions."""
CAMERAS, SIZE = ("front", "wrist"), 64
TEXTS = ("press the button", "open the drawer")


def moving_squares(rng: np.random.Generator, steps: int) -> np.ndarray:
    """Coloured squares that move over a wood-like grain, uint8 (steps, 2, 3, 64, 64). All frames differ."""
    out = np.empty((steps, len(CAMERAS), 3, SIZE, SIZE), np.uint8)
    grain = rng.integers(90, 140, (3, 1, SIZE)).repeat(SIZE, 1)
    for view in range(len(CAMERAS)):
        start, speed, colour = rng.integers(0, 20, 2), rng.integers(1, 3, 2), rng.integers(0, 255, 3)
        for step in range(steps):
            y, x = start + speed * step % 40
            out[step, view] = grain
            out[step, view, :, y : y + 9, x : x + 9] = colour[:, None, None]
    return out


def episodes() -> list[Episode]:
    """Episodes of two tasks, two cameras and different lengths. One is not a demonstration."""
    out = []
    for seed, steps in enumerate((24, 17, 30, 9)):
        rng = np.random.default_rng(seed)
        expert = rng.uniform(-1, 1, (steps, 4)).astype(np.float32)
        out.append(
            Episode(
                task=("press", "open")[seed % 2],
                text=TEXTS[seed % 2],
                seed=seed,
                fps=80.0,
                cameras=CAMERAS,
                images=moving_squares(rng, steps),
                proprio=rng.normal(size=(steps, 7)).astype(np.float32),
                action=expert + rng.normal(0, 0.1, expert.shape).astype(np.float32),
                action_expert=expert,
                reward=rng.uniform(0, 10, steps).astype(np.float32),
                success=np.arange(steps) > steps - 3,
                is_demonstration=seed != 2,
                noise=0.1,
                snapshots=tuple(Snapshot(rng.normal(size=9), {}, {"step": step}) for step in range(steps)),
            )
        )
    return out


def video_only(root: Path) -> None:
    """A data set without state or actions: two cameras of different sizes, and a text that changes in an episode."""
    store = Store.create(
        root,
        cameras=("head", "hand"),
        image_shape=(3, 64, 64),
        proprio_names=(),
        action_names=(),
        fps=30.0,
        robot_type="none",
        sizes=((64, 64), (48, 96)),
        expert=False,
        rewards=False,
    )
    for seed, steps in enumerate((20, 12)):
        rng, none = np.random.default_rng(seed), np.zeros((steps, 0), np.float32)
        frames = moving_squares(rng, steps)
        wide = np.tile(frames[:, 1, :, :48, :48], (1, 1, 1, 2))
        encoded = {"head": encode_video(frames[:, 0], 30.0), "hand": encode_video(wide, 30.0)}
        spans = (Span(5, 9, TEXTS[1]),) if seed == 0 else ()
        zeros = np.zeros(steps, np.float32), np.zeros(steps, bool)
        store.append(
            Episode("video-only", TEXTS[0], seed, 30.0, ("head", "hand"), None, none, none, none, *zeros, spans=spans),
            encoded,
        )
    store.finalize()


def stills_and_depth(root: Path) -> None:
    """A data set with one camera in PNG, one in video, and depth maps with all values of uint16."""
    store = Store.create(
        root,
        cameras=CAMERAS,
        image_shape=(3, SIZE, SIZE),
        proprio_names=[f"p{i}" for i in range(7)],
        action_names=("x", "y", "z", "grip"),
        fps=80.0,
        robot_type="test",
        stills=CAMERAS[:1],
        depth=(("depth", 48, 40),),
    )
    for seed, episode in enumerate(episodes()):
        maps = np.random.default_rng(seed).integers(0, 65536, (len(episode), 48, 40)).astype(np.uint16)
        store.append(replace(episode, depth={"depth": maps}))
    store.finalize()


def lerobot(python: str, *arguments: object) -> None:
    run(python, "with_lerobot.py", *arguments)


def run(python: str, script: str, *arguments: object) -> None:
    done = subprocess.run([python, str(INTEROP / script), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"lerobot failed to {arguments[0]}:\n{done.stderr}")


def compare(title: str, root: Path, python: str, folder: Path) -> bool:
    """Reads `root` with both and prints the differences. Returns true if there are none."""
    lerobot(python, "read", root, folder / "read.npz")
    store = Store.open(root)
    with np.load(folder / "read.npz") as file:
        wrong = differences(store, dict(file))
    cameras = f"{len(store.cameras)} colour cameras and {len(store.depth_cameras)} depth cameras"
    size = f"{len(store)} episodes, {store.frames} frames, {len(store.numeric())} columns, {cameras}"
    print(f"{title}: {size}: {', '.join(wrong) or 'equal'}")
    return not wrong


def differences(store: Store, theirs: dict[str, np.ndarray]) -> list[str]:
    """Columns and cameras in which what wamkit reads is not what lerobot read."""
    wrong, columns = [], store.numeric()
    # wamkit takes subtasks for the texts of their steps; lerobot keeps them beside the task.
    subtask = theirs.pop("subtask", None)
    tasks = theirs["task"] if subtask is None else np.where(subtask == "", theirs["task"], subtask)
    for key, ours in columns.items():
        if key == "task_index" and subtask is not None:
            continue
        # Leave out columns that wamkit fills in: labels equal to the actions, and empty vectors.
        if key in theirs and not same(theirs[key].reshape(ours.shape), ours):
            wrong.append(key)
        elif key not in theirs and ours.size and key != "action.expert":
            wrong.append(f"{key}, which lerobot lacks")
    texts = np.array(store.texts)[columns["task_index"]]
    wrong += [] if np.array_equal(tasks, texts) else ["task"]
    known = {*columns, "task", *UNREAD}
    for camera in (*store.cameras, *store.depth_cameras):
        key = camera if camera in theirs else f"observation.images.{camera}"
        known.add(key)
        depth = camera in store.depth_cameras
        decode = store.decode_depth if depth else store.decode
        ours = np.concatenate([decode(e.index, camera) for e in store.episodes]).astype(int)
        pixels = theirs[key]
        if depth:  # 16 bits as lerobot 0.4 returns them are signed
            pixels = pixels[:, 0].view(np.uint16) if pixels.dtype == np.int16 else np.rint(pixels[:, 0])
        if unequal := int((np.abs(ours - pixels) > 0).sum()):
            wrong.append(f"{unequal} pixels of {camera}, by at most {np.abs(ours - pixels).max():g}")
    return wrong + [f"{key}, which wamkit lacks" for key in theirs if key not in known]


def same(theirs: np.ndarray, ours: np.ndarray) -> bool:
    """True if numbers are equal in the narrower of both types: lerobot reads float64 in matrices as float32."""
    kind = min(theirs.dtype, ours.dtype, key=lambda dtype: dtype.itemsize)
    return np.array_equal(theirs.astype(kind), ours.astype(kind))


def variants(python: str, folder: Path) -> bool:
    """Has lerobot make data sets in many variants, and compares what it and wamkit read of each."""
    version = subprocess.check_output([python, "-c", "import lerobot; print(lerobot.__version__)"], text=True).strip()
    folder.mkdir()
    run(python, "lerobot_variants.py", folder)
    good = True
    for info in sorted(folder.glob("**/meta/info.json")):
        root = info.parents[1]
        name = root.relative_to(folder).as_posix().replace("/", "-")
        if root.parent.name.endswith("-source") or name.endswith("-source"):
            continue
        result, read = "lerobot itself does not read it", folder / f"{name}.npz"
        if read.exists():
            try:
                with np.load(read) as file:
                    wrong = differences(Store.open(root), dict(file))
            except WamkitError as error:
                wrong = [str(error)]
            result, good = ", ".join(wrong) or "equal", good and not wrong
        print(f"{name}, made by lerobot {version}: {result}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, nargs="+", help="interpreters of environments with lerobot")
    return 0 if all([exchange(python) for python in parser.parse_args().python]) else 1


def exchange(python: str) -> bool:
    """All comparisons with one lerobot. Returns true if nothing differs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good = variants(python, folder / "variants")
        rows = episodes()
        store = Store.create(
            folder / "ours",
            cameras=CAMERAS,
            image_shape=(3, SIZE, SIZE),
            proprio_names=[f"p{i}" for i in range(7)],
            action_names=("x", "y", "z", "grip"),
            fps=80.0,
            robot_type="test",
        )
        for row in rows:
            store.append(row)
        store.finalize()
        good &= compare("written by wamkit", folder / "ours", python, folder)
        np.savez(
            folder / "source.npz",
            images=np.concatenate([e.images for e in rows]),
            state=np.concatenate([e.proprio for e in rows]),
            action=np.concatenate([e.action for e in rows]),
            episode=np.repeat(range(len(rows)), [len(e) for e in rows]),
            text=np.array([e.text for e in rows for _ in range(len(e))]),
        )
        for kinds in (("video", "video"), ("image", "image"), ("video", "image")):
            root = folder / f"theirs-{'-'.join(kinds)}"
            lerobot(python, "write", root, folder / "source.npz", *kinds)
            good &= compare(f"written by lerobot, {' and '.join(kinds)}", root, python, folder)
        video_only(folder / "video-only")
        good &= compare("video without actions, written by wamkit", folder / "video-only", python, folder)
        stills_and_depth(folder / "stills")
        good &= compare("video, PNG and depth, written by wamkit", folder / "stills", python, folder)
        for name in ("ours", "stills"):
            for tool in ("delete", "merge"):
                root = folder / f"{name}-{tool}"
                lerobot(python, tool, folder / name, root)
                good &= compare(f"{name} written by wamkit, then lerobot's {tool}", root, python, folder)
    return good


if __name__ == "__main__":
    sys.exit(main())
