"""Attacks on wamkit's commands: random and absurd options, forged runs, corrupted JSON, flipped bits, damaged sources.

Each case runs the real command line, or reads files as a library call, in a forked child that may use 5 seconds and 8
GB and may write into its own folder alone. It must be refused in one line that names a file or an option, or give what
the intact files give. Everything random comes from --seed, and a case depends on its own name alone. Verdicts are in
`sandbox.py`.

    python -m benchmarks.attack --out runs/attack                    everything, some 3,300 cases, about 1 hour
    python -m benchmarks.attack --out runs/attack --groups flips     some groups; finished cases are kept
    python -m benchmarks.attack --out runs/attack --again bad        those that went wrong, once more
    python -m benchmarks.attack --out runs/attack --only NAME        one case, what it printed, and its folder
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import pkgutil
import shlex
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from benchmarks.attack import files, fixtures, forged, options, sizes
from benchmarks.attack.sandbox import BAD, GOOD, Case, clear, judge, run

GROUPS = {
    "options": options.option_cases,
    "absurd": options.absurd_cases,
    "forged": forged.forged_cases,
    "json": files.json_cases,
    "flips": files.flip_cases,
    "results": files.result_flip_cases,
    "sources": files.source_cases,
    "sizes": sizes.size_cases,
}
"""Name of a group -> its cases, from the folder of the fixtures and the seed."""


@dataclass(frozen=True)
class Args:
    """Cases to run, and place."""

    out: Path
    """Folder of the fixtures, of the cases' folders and of results.jsonl."""
    groups: tuple[str, ...] = tuple(GROUPS)
    """Groups to run."""
    only: str = ""
    """Name of one case, or a pattern with * and ?."""
    again: Literal["none", "bad", "all"] = "none"
    """Finished cases to run once more."""
    seed: int = 0
    """Seed of everything random."""
    patience: float = 1.0
    """Wall seconds allowed for each second of CPU time; more than 1 on a machine with other work."""
    minutes: float = 60.0
    """Time after which no further case begins."""
    share: float = 1.0
    """Share of the cases to run, the same ones for a seed."""


def main(args: Args) -> None:
    began = time.monotonic()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    _import_all()
    made = out / "fixtures"
    fixtures.make(made)
    results = out / f"results-{args.seed}.jsonl"
    known = {r["name"]: r for r in map(json.loads, results.read_text().splitlines())} if results.exists() else {}
    cases = {c.name: c for c in _cases(args, made)}
    todo = [c for c in cases.values() if args.only or _wanted(known.get(c.name), args.again)]
    for i, case in enumerate(todo):
        if time.monotonic() - began > 60 * args.minutes:
            print(f"out of time: {len(todo) - i} cases are left; the same command continues")
            break
        known[case.name] = _attack(case, out, args)
        with open(results, "a") as file:
            file.write(json.dumps(known[case.name]) + "\n")
        verdict = known[case.name]["verdict"]
        if verdict in BAD or i % 50 == 0:
            print(f"{i + 1}/{len(todo)} {case.name}: {verdict}  {known[case.name]['line'][:150]}", flush=True)
    found = [known[n] for n in cases if n in known]
    print(report(found, args))
    (out / f"summary-{args.seed}.json").write_text(json.dumps(_counts(found), indent=1) + "\n")


def report(found: list[dict], args: Args) -> str:
    """A table of verdicts by group, and the bad cases with the command that repeats each."""
    counts = _counts(found)
    shown = [v for v in (*GOOD, *BAD) if any(c[v] for c in counts.values())]
    lines = [f"| group | cases | {' | '.join(shown)} |", f"|---|---:|{'---:|' * len(shown)}"]
    lines += [f"| {g} | {sum(c.values())} | {' | '.join(str(c[v]) for v in shown)} |" for g, c in counts.items()]
    bad = [r for r in found if r["verdict"] in BAD]
    lines += ["", f"{len(bad)} of {len(found)} went wrong" + (":" if bad else "")]
    for r in bad:
        repeat = f"python -m benchmarks.attack --out {args.out} --seed {args.seed} --only {shlex.quote(r['name'])}"
        words = r["command"] if len(r["command"]) < 100 else r["command"].split(" --")[0] + " ..."
        lines += [f"- {r['verdict']}: `{words}`; {r['what'][:150]}", f"  {r['line'][:250]}", f"  {repeat}"]
    return "\n".join(lines)


def _counts(found: list[dict]) -> dict[str, Counter]:
    counts: dict[str, Counter] = {}
    for r in found:
        counts.setdefault(r["name"].split("/")[0], Counter())[r["verdict"]] += 1
    return counts


def _cases(args: Args, made: Path) -> Iterator[Case]:
    for group, cases in GROUPS.items():
        if group in args.groups:
            for case in cases(made, args.seed):
                chosen = fnmatch.fnmatchcase(case.name, args.only) if args.only else _draw(case.name) < args.share
                if chosen:
                    yield case


def _draw(name: str) -> float:
    return zlib.crc32(name.encode()[::-1]) / 2**32


def _wanted(before: dict | None, again: str) -> bool:
    return before is None or again == "all" or (again == "bad" and before["verdict"] in BAD)


def _attack(case: Case, out: Path, args: Args) -> dict:
    """Runs one case and returns its row of results."""
    folder = out / "cases" / f"{zlib.crc32(case.name.encode()):08x}"
    clear(folder)
    folder.mkdir(parents=True)
    what = case.prepare(folder, np.random.default_rng([args.seed, zlib.crc32(case.name.encode())]))
    ended = run(case, folder, args.patience)
    verdict, line = judge(case, ended)
    command = shlex.join(w if len(w) < 80 else w[:77] + "..." for w in ("wamkit", *case.command))
    if args.only and len(args.only) == len(case.name):
        print(f"in {folder}: {command}\n{what}\nexit code {ended.code}, {ended.cpu:.1f} s, {ended.peak:.1f} GB")
        print(f"{ended.out}\n{ended.err}")
    else:
        clear(folder)
    return {
        "name": case.name,
        "verdict": verdict,
        "line": line[:600],
        "what": what[:300],
        "command": command[:600],
        "code": ended.code,
        "cpu": round(ended.cpu, 2),
        "wall": round(ended.wall, 2),
        "peak": round(ended.peak, 2),
    }


def _import_all() -> None:
    """Imports wamkit and what its commands import, so that a forked child starts at once."""
    import wamkit

    for module in pkgutil.walk_packages(wamkit.__path__, "wamkit."):
        importlib.import_module(module.name)
    for name in ("tyro", "mujoco", "pyarrow.parquet", "h5py", "zarr", "imagecodecs", "scipy.stats"):
        importlib.import_module(name)


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("the attack forks and limits its children, which needs Linux")
    main(tyro.cli(Args, description=__doc__))
