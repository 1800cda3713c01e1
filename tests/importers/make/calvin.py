"""Writes tests/importers/data/calvin as CALVIN's recorder and annotator do: np.savez_compressed, np.save of dicts.

    python tests/importers/make/calvin.py

Two stretches, steps 3 to 10 and 20 to 24. The first has two annotations. The grey of step t is 8 t, x = t / 100.
"""

import shutil
from pathlib import Path

import numpy as np

OUT = Path(__file__).parents[1] / "data/calvin"
shutil.rmtree(OUT, ignore_errors=True)
(OUT / "lang_annotations").mkdir(parents=True)
rng = np.random.default_rng(0)
for first, last in ((3, 10), (20, 24)):
    for t in range(first, last + 1):
        grey = lambda n, t=t: np.full((n, n, 3), 8 * t, np.uint8)  # noqa: E731
        np.savez_compressed(
            OUT / f"episode_{t:07d}.npz",
            actions=np.r_[(t + 1) / 100, rng.normal(size=5), 1.0],
            rel_actions=np.r_[t / 30, rng.uniform(-1, 1, 5), -1.0],
            robot_obs=np.r_[t / 100, rng.normal(size=14)],
            scene_obs=rng.normal(size=24),
            rgb_static=grey(32),
            rgb_gripper=grey(16),
        )
np.save(OUT / "ep_start_end_ids.npy", np.array([[3, 10], [20, 24]]))
language = {
    "language": {
        "ann": ["push the block", "open the drawer"],
        "task": ["push", "open"],
        "emb": np.zeros((2, 1, 4), np.float32),
    },
    "info": {"episodes": [], "indx": [(4, 6), (8, 10)]},
}
np.save(OUT / "lang_annotations/auto_lang_ann.npy", language)
