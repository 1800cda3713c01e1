"""Kills collection and training with SIGKILL at random moments, and repeats the same command until it finishes.

The final data set and the final weights must equal those of an uninterrupted run, byte for byte.
Usage: python benchmarks/kill.py [--kills 10] [--out runs/kill]
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

WAMKIT = [sys.executable, "-c", "from wamkit.cli.main import entry; entry()"]
COLLECT = ["collect", "--tasks", "drawer-open-v3", "door-open-v3", "--episodes", "8", "--off-expert", "2"]
TRAIN = ["train", "--train.steps", "120", "--train.save-every", "7"]


@dataclass(frozen=True)
class Args:
    """Number of kills, and place."""

    kills: int = 10
    """Kills of each command."""
    out: Path = Path("runs/kill")
    """A folder that does not exist yet."""
    seed: int = 0
    """Seed of the random moments."""


def run(command: list[str], kills: int, span: float, rng: np.random.Generator) -> None:
    """Runs `command`, killing its whole process group `kills` times at random moments of the first `span` seconds."""
    for _ in range(kills):
        process = subprocess.Popen(
            [*WAMKIT, *command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(float(rng.uniform(0, span)))
        finished = process.poll() is not None
        if not finished:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print("  finished before the kill" if finished else "  killed", flush=True)
    subprocess.run([*WAMKIT, *command], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def digest(folder: Path, pattern: str) -> dict[str, str]:
    """SHA-256 of every file under `folder` that matches `pattern`, by path; caches are left out."""
    files = (p for p in sorted(folder.rglob(pattern)) if p.is_file() and ".cache" not in p.parts)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main(args: Args) -> None:
    rng, same = np.random.default_rng(args.seed), []
    for what, command, pattern, needs in (
        ("collect", COLLECT, "*", False),
        ("train", TRAIN, "weights.safetensors", True),
    ):
        folders = {name: args.out / f"{what}-{name}" for name in ("whole", "killed")}
        data = ["--data", str(args.out / "collect-whole")] if needs else []
        began = time.perf_counter()
        run([*command, *data, "--out", str(folders["whole"])], 0, 0, rng)
        span = time.perf_counter() - began
        print(f"{what}: {span:.0f} s uninterrupted")
        run([*command, *data, "--out", str(folders["killed"])], args.kills, span / 2, rng)
        a, b = (digest(folder, pattern) for folder in folders.values())
        last = {k: v for k, v in a.items() if not needs or k.startswith(sorted(a)[-1].rsplit("/", 1)[0])}
        same.append(bool(last) and all(b.get(k) == v for k, v in last.items()) and (needs or set(a) == set(b)))
        print(f"{what}: {len(last)} files, {'identical' if same[-1] else 'DIFFERENT'} after {args.kills} kills")
    sys.exit(not all(same))


if __name__ == "__main__":
    main(tyro.cli(Args))
