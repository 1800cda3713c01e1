"""stable-worldmodel's part of benchmarks/loading.py: frames per CPU-second of shuffled windows.

Its own writers make the files, its HDF5 and Lance readers read them. Needs an environment with the package:

    pip install --no-deps stable-worldmodel
    pip install torch numpy h5py hdf5plugin lancedb pylance pillow loguru tqdm
    python with_stable_worldmodel.py IMAGES.npy LENGTH ROUNDS     IMAGES: uint8 (N, H, W, 3), episodes of LENGTH rows
"""

import importlib.util
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import torch

# The package itself imports simulators; its data part does not need them.
root = Path(importlib.util.find_spec("stable_worldmodel").origin).parent
package = types.ModuleType("stable_worldmodel")
package.__path__ = [str(root)]
sys.modules["stable_worldmodel"] = package

from stable_worldmodel.data.formats.hdf5 import HDF5Dataset, HDF5Writer  # noqa: E402
from stable_worldmodel.data.formats.lance import LanceDataset, LanceWriter  # noqa: E402

WINDOW, WINDOWS, BATCH = 8, 256, 16


def rate(data, rounds: int) -> float:
    """Frames per CPU-second of shuffled batches, read at once where the reader can."""
    rates = []
    for i in range(rounds + 1):
        chosen = np.random.default_rng(i).integers(0, len(data), WINDOWS).tolist()
        began = time.process_time()
        for at in range(0, WINDOWS, BATCH):
            some = chosen[at : at + BATCH]
            samples = data.__getitems__(some) if hasattr(data, "__getitems__") else [data[k] for k in some]
            assert all(s["pixels"].shape[0] == WINDOW for s in samples)
        rates.append(WINDOW * WINDOWS / (time.process_time() - began))
    return statistics.median(rates[1:])


if __name__ == "__main__":
    torch.set_num_threads(1)
    images, length, rounds = np.load(sys.argv[1], mmap_mode="r"), int(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory() as name:
        for kind, writer, reader in (("h5", HDF5Writer, HDF5Dataset), ("lance", LanceWriter, LanceDataset)):
            path = Path(name) / f"data.{kind}"
            with writer(path) as file:
                for at in range(0, len(images), length):
                    rows = {
                        "pixels": list(images[at : at + length]),
                        "action": list(np.zeros((length, 2), np.float32)),
                    }
                    file.write_episode(rows)
            data = reader(path=path, num_steps=WINDOW, keys_to_load=["pixels"])
            print(kind, rate(data, rounds), flush=True)
