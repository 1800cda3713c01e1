"""lerobot's part of benchmarks/loading.py: frames per CPU-second of shuffled windows.

Needs an environment with lerobot:

python with_lerobot.py ROOT ROUNDS
"""

import importlib.util
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
if not importlib.util.find_spec("torchvision"):
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests/interop/stand_in"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402

WINDOW, WINDOWS = 8, 64
torch.set_num_threads(1)
root, rounds = Path(sys.argv[1]), int(sys.argv[2])
about = json.loads((root / "meta/info.json").read_text())
key = next(k for k, f in about["features"].items() if f["dtype"] == "video")
offsets = {key: [t / about["fps"] for t in range(WINDOW)]}
data = LeRobotDataset("local/data", root=root, video_backend="pyav", delta_timestamps=offsets)
rates = []
for i in range(rounds + 1):
    starts = np.random.default_rng(i).integers(0, len(data), WINDOWS)
    began = time.process_time()
    for start in starts.tolist():
        assert data[start][key].shape[0] == WINDOW
    rates.append(WINDOW * WINDOWS / (time.process_time() - began))
print(statistics.median(rates[1:]))
