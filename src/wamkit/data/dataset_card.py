"""The card of a data set on the Hub: what was recorded, by which robot, and how it is read."""

from __future__ import annotations

from collections import Counter

from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.format.store import Store
from wamkit.data.labelled import in_words
from wamkit.hub.cards import card, cell, code, table

_SHOWN = 50  # instructions that the card names


def dataset_card(store: Store, repo: str, licence: str) -> bytes:
    """README.md of the repository `repo`. licence: "" where none is stated."""
    layout, metadata = store.layout, load_metadata(store.root)
    facts = {
        "license": licence,
        "task_categories": ["robotics"],
        "tags": ["LeRobot", "wamkit", *([layout.robot_type] if layout.robot_type else [])],
        "configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}],
    }
    shapes = [[c, "{}x{}".format(*layout.size(c)), _role(metadata, c)] for c in layout.cameras]
    tasks = Counter(m.text or m.task for m in store.episodes)
    rows = [
        ["robot", (metadata and metadata.embodiment) or layout.robot_type or "unknown"],
        ["episodes, frames", f"{len(store)}, {store.frames}"],
        ["demonstrations", sum(m.is_demonstration for m in store.episodes)],
        ["steps a second", layout.fps],
        ["state", ", ".join(layout.proprio_names) or "none"],
        ["action", ", ".join(layout.action_names) or "none"],
        ["recorded in", metadata.source if metadata else "unknown"],
    ]
    if metadata is not None and metadata.labels is not None:
        rows.append(["labels", in_words(store, metadata.labels)])
    more = f"\n\nand {len(tasks) - _SHOWN} more" if len(tasks) > _SHOWN else ""
    load = [f"wamkit train --data hf://{repo}{part} --out runs/mine" for part in ("", ":0-10")]
    lerobot = f'from lerobot.datasets.lerobot_dataset import LeRobotDataset\n\ndata = LeRobotDataset("{repo}")'
    sections = [
        "Recordings of a robot in the format LeRobotDataset v3.0, which "
        "[LeRobot](https://github.com/huggingface/lerobot) and wamkit (`pip install 'wamkit[hub]'`) read.",
        code("\n".join(load)),
        code(lerobot, "python"),
        "## Contents\n\n" + table(("what", "value"), rows),
        "## Cameras\n\n" + (table(("camera", "size", "role"), shapes) or "None."),
        "## Instructions\n\n" + table(("instruction", "episodes"), tasks.most_common(_SHOWN)) + more,
        f"## Licence\n\n{cell(licence) if licence else 'Not stated: ask the author before you use it.'}",
    ]
    return card({k: v for k, v in facts.items() if v}, repo.split("/")[1], sections)


def _role(metadata: object, camera: str) -> str:
    known = getattr(metadata, "cameras", {})
    return known[camera].role if camera in known else ""
