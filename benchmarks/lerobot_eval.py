"""One task played by `lerobot-eval` and by `wamkit eval`: the outcomes of the same episodes side by side.

Runs in an environment with lerobot 0.6.1, wamkit and the plug-in (`make interop` makes one):

    python benchmarks/lerobot_eval.py --folder /tmp/proof --episodes 20

collects demonstrations of one task, trains on them for a few minutes, and evaluates the run with both commands in
wamkit's environment, with the same seeds. Prints both lists and exits with status 1 if they differ. What is there from
an earlier call is used again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from wamkit.envs.base import HELD_OUT_SEED_BASE

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def run(*command: object) -> None:
    """Runs a command of this environment, software rendering, one thread: the number of threads changes sums."""
    words = [str(Path(sys.executable).with_name(str(command[0]))), *map(str, command[1:])]
    print(f"$ {' '.join(map(str, command))}", flush=True)
    done = subprocess.run(
        words, env={**os.environ, **ONE_THREAD, "MUJOCO_GL": "osmesa"}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])


def by_lerobot(policy: list[str], out: Path, task: str, episodes: int) -> list[bool]:
    """Success of each episode, as lerobot-eval says."""
    seed = HELD_OUT_SEED_BASE
    if not (out / "eval_info.json").exists():
        run(
            "lerobot-eval",
            *policy,
            f"--policy.seed={seed}",
            "--policy.device=cpu",
            f"--env.task={task}",
            f"--eval.n_episodes={episodes}",
            "--eval.batch_size=1",
            f"--seed={seed}",
            f"--output_dir={out}",
        )
    return json.loads((out / "eval_info.json").read_text())["per_task"][0]["metrics"]["successes"]


def by_wamkit(trained: Path, episodes: int) -> list[bool]:
    """Success of each episode, as `wamkit eval` says."""
    table = trained / "eval/episodes.parquet"
    if not table.exists():
        run("wamkit", "eval", trained, "--episodes", episodes, "--held-out", 0)
    rows = pq.read_table(table).to_pylist()
    return [row["success"] for row in sorted(rows, key=lambda row: row["seed"])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--task", default="drawer-open-v3")
    parser.add_argument("--demonstrations", type=int, default=25)
    parser.add_argument("--steps", type=int, default=150, help="of training, few enough that some episodes fail")
    parser.add_argument("--episodes", type=int, default=20)
    args = parser.parse_args()
    demos, trained = args.folder / "demos", args.folder / "runs/drawer"
    if not (trained / "checkpoints/latest").exists():
        collected = ("--tasks", args.task, "--episodes", args.demonstrations, "--out", demos)
        run("wamkit", "collect", "--env", "metaworld", *collected)
        run("wamkit", "train", "--data", demos, "--out", trained, "--train.steps", args.steps)
    policy = ["--policy.type=wamkit", f"--policy.run={trained}", "--env.type=wamkit", f"--env.run={trained}"]
    theirs = by_lerobot(policy, args.folder / "lerobot-eval", args.task, args.episodes)
    ours = by_wamkit(trained, args.episodes)
    for name, outcomes in (("lerobot-eval", theirs), ("wamkit eval ", ours)):
        print(f"{name}  {''.join('x' if success else '.' for success in outcomes)}  {sum(outcomes)} of {len(outcomes)}")
    equal = sum(a == b for a, b in zip(theirs, ours, strict=True))
    print(f"{equal} of {len(ours)} outcomes are equal")
    return 0 if equal == len(ours) else 1


if __name__ == "__main__":
    sys.exit(main())
