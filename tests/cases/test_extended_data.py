"""Data sets that grow: collections and imports continue after the last episode, and runs keep their own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_folders import Recordings, write_v21
from recordings import LAYOUT, content, make_episode

from wamkit.cli.main import main
from wamkit.config import save_json
from wamkit.data.format import checksums
from wamkit.data.format.metadata_io import load_metadata, save_metadata
from wamkit.data.format.store import Store
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.mixture import MixtureConfig, SourceConfig
from wamkit.data.loading.windows import Windows
from wamkit.eval.metrics.image import fidelity
from wamkit.eval.queries import whole_windows
from wamkit.eval.suites.open_loop import imagine
from wamkit.inference.model import load
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.rollout.collect import collect
from wamkit.rollout.plan import CollectConfig, counts_of, plan
from wamkit.runs.config import RunConfig, TrainConfig, WindowConfig
from wamkit.runs.recipes import RECIPES
from wamkit.runs.run import Run
from wamkit.training.launch import train_run
from wamkit.types import WamkitError


def small(out: Path, **changes) -> CollectConfig:
    more = {"env": "pusht", "tasks": ("push-t",), "episodes": 0, "off_expert": 2, "off_expert_steps": 8}
    return CollectConfig(**({"out": out, "processes": 1} | more | changes))


def after_a_checkpoint(run):
    """A watch that interrupts the training of `run` once it has a checkpoint."""

    def stop(*_):
        if (run / "checkpoints/latest").exists():
            raise KeyboardInterrupt
        return {}

    return stop


def test_a_longer_plan_begins_with_the_one_before_it():
    before = CollectConfig(tasks=("a", "b"), out=Path("x"), episodes=25, off_expert=10)
    for changes in ({"episodes": 60}, {"off_expert": 30}, {"episodes": 26, "perturbed_experts": 7}):
        after = dataclasses.replace(before, **changes)
        jobs = plan(after, [counts_of(before)])
        assert jobs[: len(plan(before))] == plan(before) and len(jobs) == len(plan(after))
        assert sorted((j.task, j.kind) for j in jobs) == sorted((j.task, j.kind) for j in plan(after))
        assert [j.index for j in jobs] == list(range(len(jobs)))
        assert len({s for j in jobs for s in j.seeds}) == sum(len(j.seeds) for j in jobs)
    alone = CollectConfig(tasks=("a", "b"), out=Path("x"), episodes=25, off_expert=0)
    more = dataclasses.replace(alone, episodes=60)
    assert plan(more, [counts_of(alone)]) == plan(more)


def test_a_collection_is_extended(tmp_path):
    collect(small(tmp_path / "parts"), progress=False)
    first = content(tmp_path / "parts")
    collect(small(tmp_path / "parts", off_expert=4), progress=False)
    collect(small(tmp_path / "whole", off_expert=4), progress=False)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    kept = {k: v for k, v in first.items() if k.startswith(("data/", "videos/", "meta/episodes/"))}
    assert kept.items() <= content(tmp_path / "parts").items()
    with pytest.raises(WamkitError, match="off_expert = 4, now 2: it can be extended, not shortened"):
        collect(small(tmp_path / "parts"), progress=False)
    with pytest.raises(WamkitError, match="another configuration: off_expert_steps was 8, now 9"):
        collect(small(tmp_path / "parts", off_expert=6, off_expert_steps=9), progress=False)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_an_import_is_extended_and_takes_no_episodes_of_another_source_for_its_own(tmp_path, capsys):
    for name, lengths in (("source", (12, 13, 14)), ("other", (15, 16, 17))):
        write_v21(tmp_path / name, Recordings(lengths=lengths, height=32, width=32))
    command = ["import", "lerobot2", str(tmp_path / "source"), "--out"]
    assert main([*command, str(tmp_path / "parts"), "--limit", "1"]) == 0
    assert main([*command, str(tmp_path / "parts")]) == 0
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    capsys.readouterr()
    command[2] = str(tmp_path / "other")
    assert main([*command, str(tmp_path / "parts")]) != 0
    assert f"was imported otherwise: source was '{tmp_path / 'source'}', now '" in capsys.readouterr().err
    command[2] = str(tmp_path / "source")
    assert main([*command, str(tmp_path / "parts"), "--options.embodiment", "arm"]) != 0
    assert "options.embodiment was '', now 'arm'" in capsys.readouterr().err
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def umi(out: Path) -> list[str]:
    source = Path(__file__).parents[1] / "importers/data/umi/session.zarr.zip"
    return ["import", "umi", str(source), "--options.text", "push", "--out", str(out)]


def test_an_import_that_an_earlier_version_began_goes_on(tmp_path, capsys):
    """Its metadata lack the fields that there are since, and its import.json says nothing of them."""
    assert main([*umi(tmp_path / "parts"), "--limit", "1"]) == 0
    root, state = tmp_path / "parts", json.loads((tmp_path / "parts/import.json").read_text())
    metadata = json.loads((root / "meta/wamkit.json").read_text())
    for new in ("action_bounds", "columns", "inferred"):
        del metadata[new]
    for field in (*metadata["state"], *metadata["action"]):
        del field["larger"], field["reference"]
    del state["metadata"], state["notes"]
    state["complete"] = False
    contents = {"meta/wamkit.json": metadata, "import.json": state}
    checksums.write(root, {name: json.dumps(content).encode() for name, content in contents.items()})
    assert load_metadata(root).action[2].larger == ""
    assert main(umi(root)) == 0 and main(umi(tmp_path / "whole")) == 0
    assert content(root) == content(tmp_path / "whole") and load_metadata(root).action[2].larger == "opens"
    metadata["state"][2]["kind"] = "other"
    checksums.write(root, {name: json.dumps(content).encode() for name, content in contents.items()})
    before = content(root)
    assert main(umi(root)) != 0
    said = "parts was imported with other metadata: state.2.kind was 'other', now 'gripper'. Name another folder"
    assert said in capsys.readouterr().err and content(root) == before


def test_an_import_that_was_described_since_is_extended(tmp_path):
    assert main([*umi(tmp_path / "data"), "--limit", "1"]) == 0
    assert main(["describe", str(tmp_path / "data"), "--set", "licence=MIT", "embodiment=mine", "--write"]) == 0
    assert main(umi(tmp_path / "data")) == 0
    metadata = load_metadata(tmp_path / "data")
    assert (metadata.licence, metadata.embodiment) == ("MIT", "mine") and len(Store.open(tmp_path / "data")) == 2


def test_a_run_goes_on_with_the_episodes_it_was_begun_on(tmp_path, capsys):
    store = Store.create(tmp_path / "data", **LAYOUT)
    for seed in range(3):
        store.append(make_episode(seed))
    store.finalize()
    recipe = RECIPES.get("metaworld-bc")()
    model = dataclasses.replace(recipe.model, width=32, depth=1, heads=2)
    config = RunConfig(
        "bc",
        model,
        WindowConfig(4, (2, 4)),
        TrainConfig(steps=6, batch_size=4, save_every=2, threads=1, precision="fp32"),
    )

    stop = after_a_checkpoint(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        train_run(config, store.root, tmp_path / "parts", watch=stop)
    train_run(config, store.root, tmp_path / "whole")
    for seed in range(3, 5):
        store.append(make_episode(seed))
    store.finalize()
    capsys.readouterr()
    train_run(config, store.root, tmp_path / "parts")
    assert "was begun on the first 3 of now 5 episodes" in capsys.readouterr().out
    runs = [Run.open(tmp_path / name) for name in ("parts", "whole")]
    assert [r.provenance.episodes for r in runs] == [3, 3] and runs[0].digest == runs[1].digest
    weights = [r.weights() for r in runs]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    train_run(config, store.root, tmp_path / "all")
    assert Run.open(tmp_path / "all").provenance.episodes == 5


def test_a_run_of_a_mixture_goes_on_with_the_episodes_it_was_begun_on(tmp_path, capsys):
    metadata = DatasetMetadata(
        "test",
        "arm",
        state=(Field("joints", 0, 3, "joint"),),
        action=(Field("joints", 0, 2, "joint"),),
        cameras={"front": CameraFacts("scene"), "wrist": CameraFacts("wrist")},
    )
    stores = [Store.create(tmp_path / name, **LAYOUT) for name in ("a", "b")]
    for number, store in enumerate(stores):
        for seed in range(2):
            store.append(make_episode(10 * number + seed))
        store.finalize()
        save_metadata(store.root, metadata)
    sources = (SourceConfig("a"), SourceConfig("b"))
    save_json(tmp_path / "mixture.json", MixtureConfig(sources, by="episode", size=(32, 32), views=("wrist",)))
    model = dataclasses.replace(RECIPES.get("unified-mixture")().model, width=32, depth=1, heads=2)
    config = RunConfig(
        "unified",
        model,
        WindowConfig(4, (2, 4)),
        TrainConfig(steps=4, batch_size=4, save_every=2, threads=1, precision="fp32"),
    )

    stop = after_a_checkpoint(tmp_path / "parts")
    train = lambda name, watch=None: train_run(config, tmp_path / "mixture.json", tmp_path / name, watch=watch)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        train("parts", stop)
    train("whole")
    stores[0].append(make_episode(30))
    stores[0].finalize()
    capsys.readouterr()
    train("parts")
    assert f"was begun on the first 2 of now 3 episodes of {tmp_path / 'a'}" in capsys.readouterr().out
    weights = [Run.open(tmp_path / name).weights() for name in ("parts", "whole")]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    # Its model sees the second camera alone, and no figure counts the first one, which it imagines black.
    model, (frames, _) = load(tmp_path / "whole", embodiment="b"), open_frames(stores[1])
    found = imagine(model, frames, stride=2, progress=False).fidelity
    batch = Windows(frames, model.spec, seed=0, batch_size=1).gather(whole_windows(frames, model.spec, 2))
    wrist = (batch.obs[:, 1], batch.future[:, :, 1], batch.future[:, :, 1], (2, 4), batch.frame_valid)
    copied = fidelity(*wrist)
    assert all(np.allclose(x.mse_copy, copied.mse_copy, equal_nan=True) for x in found.values())
    assert found["forward"].seen.max() == 0.5


def test_held_out_episodes_of_a_run_stay_held_out(tmp_path):
    store = Store.create(tmp_path / "data", **LAYOUT)
    for seed in range(5):
        store.append(make_episode(seed))
    frames, _ = open_frames(store)
    own = dataclasses.replace(frames, used=np.arange(5) < 4)
    assert own.only([1, 3, 4]).chosen().tolist() == [1, 3]
    drawn = [own.draw(2, seed).tolist() for seed in range(30)]
    assert drawn == [own.draw(2, seed).tolist() for seed in range(30)] and all(a < b < 4 for a, b in drawn)
    assert {e for pair in drawn for e in pair} == {0, 1, 2, 3} and frames.draw(4, 0).size == 4
