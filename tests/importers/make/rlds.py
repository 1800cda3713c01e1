"""Writes tests/importers/data/rlds with tensorflow-datasets: two files, three episodes, nested observations, PNG, JPEG.

    python3.11 -m venv oracle && oracle/bin/pip install tensorflow-cpu tensorflow-datasets importlib_resources
    oracle/bin/python tests/importers/make/rlds.py

truth.npz holds what went in. The grey of image t is 10 t; the second episode's instruction changes at its step 3.
"""

import os
import shutil
import tempfile
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import tensorflow_datasets as tfds

OUT = Path(__file__).parents[1] / "data/rlds"
LENGTHS = (6, 5, 7)


def episode(e: int) -> dict:
    rng, T = np.random.default_rng(e), LENGTHS[e]
    steps = []
    for t in range(T):
        picture = np.full((32, 32, 3), 10 * t, np.uint8) + rng.integers(0, 3, (32, 32, 3), dtype=np.uint8)
        steps.append(
            {
                "observation": {
                    "image": picture,
                    "wrist_image": picture[::2, ::2],
                    "state": rng.normal(size=8).astype(np.float32),
                },
                "action": rng.normal(size=7),
                "language_instruction": "put it down" if (e, t >= 3) == (1, True) else "pick it up",
                "reward": np.float32(t == T - 1),
                "discount": np.float32(1),
                "is_first": t == 0,
                "is_last": t == T - 1,
                "is_terminal": t == T - 1,
            }
        )
    return {"steps": steps, "episode_metadata": {"file_path": f"raw/{e}"}}


class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        f = tfds.features
        observation = {
            "image": f.Image(shape=(32, 32, 3), dtype=np.uint8, encoding_format="png"),
            "wrist_image": f.Image(shape=(16, 16, 3), dtype=np.uint8, encoding_format="jpeg"),
            "state": f.Tensor(shape=(8,), dtype=np.float32),
        }
        step = {
            "observation": f.FeaturesDict(observation),
            "action": f.Tensor(shape=(7,), dtype=np.float64),
            "language_instruction": f.Text(),
            **{k: f.Scalar(dtype=np.float32) for k in ("reward", "discount")},
            **{k: f.Scalar(dtype=np.bool_) for k in ("is_first", "is_last", "is_terminal")},
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=f.FeaturesDict(
                {"steps": f.Dataset(step), "episode_metadata": f.FeaturesDict({"file_path": f.Text()})}
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for e in range(len(LENGTHS)):
            yield str(e), episode(e)


if __name__ == "__main__":
    shutil.rmtree(OUT, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        config = tfds.download.DownloadConfig(num_shards=2)
        builder = Tiny(data_dir=folder)
        builder.download_and_prepare(download_config=config)
        shutil.copytree(Path(folder) / "tiny/1.0.0", OUT / "tiny/1.0.0")
        columns = {}
        for e, data in enumerate(builder.as_dataset(split="train")):
            rows = list(data["steps"].as_numpy_iterator())
            columns[f"action{e}"] = np.stack([r["action"] for r in rows])
            columns[f"state{e}"] = np.stack([r["observation"]["state"] for r in rows])
            columns[f"image{e}"] = np.stack([r["observation"]["image"] for r in rows])
            columns[f"wrist{e}"] = np.stack([r["observation"]["wrist_image"] for r in rows])
            columns[f"text{e}"] = np.array([r["language_instruction"].decode() for r in rows])
    np.savez_compressed(OUT / "truth.npz", **columns)
    print(*(f"{p.relative_to(OUT)} {p.stat().st_size}" for p in sorted(OUT.rglob("*")) if p.is_file()), sep="\n")
