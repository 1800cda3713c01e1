"""A sample of benchmarks/attack on a data set that wamkit wrote: refused in one line that names the file, or read as it
was."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from benchmarks.attack import damage, use
from recordings import copy_files

from wamkit.errors import WamkitError
from wamkit.rollout.collect import CollectConfig, collect

pytestmark = pytest.mark.timeout(30)
JSON = ("collect.json", "meta/info.json", "meta/stats.json", "meta/wamkit.json", "meta/modality.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A collected data set of two short episodes."""
    root = tmp_path_factory.mktemp("attack") / "data"
    small = {"height": 32, "width": 32, "supersample": 1}
    lengths = {"steps_after_success": 1, "off_expert_steps": 6}
    episodes = {"episodes": 1, "off_expert": 1}
    collect(CollectConfig(tasks=("reach",), out=root, env="reacher", options=small, **episodes, **lengths))
    return root


def answer(root: Path, images: bool = False) -> str:
    """A digest of what the data set means, or the refusal of it, which is one line."""
    try:
        return use.digest(dict(use.facts(root, images)))
    except WamkitError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return str(error)


@pytest.mark.parametrize("kind", damage.JSON)
@pytest.mark.parametrize("name", JSON)
def test_corrupted_json(made, tmp_path, kind, name):
    whole, root = answer(made), copy_files(made, tmp_path / "data")
    damage.JSON[kind](root / name, np.random.default_rng(zlib.crc32(f"{name} {kind}".encode())))
    found = answer(root)
    assert found == whole or Path(name).name in found


def test_flipped_bits(made, tmp_path):
    """One bit of every file, where it is read or shown: another answer is a refusal that names the file."""
    whole = answer(made, images=True)
    for file in sorted(p for p in made.rglob("*") if p.is_file() and ".cache" not in p.parts):
        name = file.relative_to(made)
        root = copy_files(made, tmp_path / "data")
        damage.flipped(root / name, np.random.default_rng(zlib.crc32(str(name).encode())))
        found = answer(root, images=True)
        assert found == whole or name.name in found, name
        for path in sorted(root.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
