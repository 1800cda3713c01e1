"""The times of a run's queries, by part, as `wamkit latency` found them: lines of text, and a table of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wamkit.eval.outputs import read_result
from wamkit.eval.results import CLOSED_LOOP, Row, Table
from wamkit.files import StoreError

NAMES = {
    "preprocess": "checks and images to the model's size",
    "text": "instruction",
    "encode": "images and state to tokens",
    "prefill": "context through the backbone",
    "denoise": "all denoising steps",
    "step": "one denoising step",
    "decode": "answer to the robot's units",
    "total": "the whole query",
    "transport": "client, socket and server beside it",
}


def lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table in text."""
    for one in found:
        yield _about(one)
        yield f"  {'':<40} {'p50':>8} {'p95':>8} {'p99':>8}  ms"
        for part, name in NAMES.items():
            if part in one["parts"]:
                times = one["parts"][part]
                yield f"  {name:<40} {times['p50']:>8.2f} {times['p95']:>8.2f} {times['p99']:>8.2f}"
        yield f"  {'the first query, before anything was warm':<40} {one['first_ms']:>8.0f}"


def tables(home: Path, weights: str) -> list[Table]:
    """One table a query, where the times of these weights were measured; none else."""
    path = home / "latency/summary.json"
    if not path.is_file():
        return []
    try:
        told = read_result(path)
        if told["weights"] != weights:
            return []
        return [_table(one) for one in told["queries"]]
    except (StoreError, LookupError, TypeError, ValueError):
        return []


def _table(one: Mapping[str, Any]) -> Table:
    rows = tuple(
        Row(part, name, times["p50"], unit="ms", note=f"p95 {times['p95']:.2f}, p99 {times['p99']:.2f}")
        for part, name in NAMES.items()
        if (times := one["parts"].get(part))
    )
    how = f"{_about(one)}. Medians, with the 95th and 99th percentile. Made by wamkit latency."
    return Table(f"latency_{one['query']}", f"Latency of a {one['query']} query", how, rows, CLOSED_LOOP)


def _about(one: Mapping[str, Any]) -> str:
    height, width = one["image"]
    load = one["load"]
    steps = f"{one['denoising_steps']} denoising steps, " if one["denoising_steps"] else ""
    cameras = f"{one['cameras']} camera{'s' * (one['cameras'] != 1)} of {height}x{width}"
    threads = f"{one['threads']} thread{'s' * (one['threads'] != 1)}"
    return (
        f"{one['query']}: {steps}{cameras}, {one['device']}, {one['dtype']}, {threads}, {one['repeats']} queries on "
        f"{load['cpu']}, load average {load['average']:.1f}"
    )
