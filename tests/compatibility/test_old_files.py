"""Files of an earlier version: they load, resume and evaluate to what that version made of them (see README.md
here)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import wamkit
from wamkit import config as cfg
from wamkit import old_names
from wamkit.cli.main import main
from wamkit.data.format.store import Store
from wamkit.runs.checkpoint import load_checkpoint
from wamkit.runs.recipes import RECIPES
from wamkit.runs.run import Run, build, run_from_dict, run_to_dict
from wamkit.training.launch import LoadingOptions, _open_mixture

BEFORE = Path(__file__).parent / "before"
FAST = [
    *("--train.save-every", "4", "--train.batch-size", "4", "--train.threads", "1", "--train.precision", "fp32"),
    *("--model.width", "16", "--model.depth", "1", "--model.heads", "2", "--model.text.buckets", "64"),
]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Another processor rounds otherwise; on the one that wrote the files all bits are equal (docs/LOG.md)."""


@pytest.fixture(scope="module")
def expected():
    with np.load(BEFORE / "expected.npz", allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture
def before(tmp_path) -> Path:
    """A copy that may be written to."""
    return Path(shutil.copytree(BEFORE, tmp_path / "before"))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> Path:
    """The run of `cascade_geom`, trained from the middle to its end by this version."""
    folder = tmp_path_factory.mktemp("old") / "before"
    shutil.copytree(BEFORE, folder)
    command = ["train", "--recipe", "metaworld-cascade_geom", "--data", str(folder / "data"), "--model.patch", "2"]
    assert load_checkpoint(folder / "geom").step == 4
    assert main([*command, "--out", str(folder / "geom"), "--train.steps", "8", "--train.log-every", "1", *FAST]) == 0
    return folder / "geom"


@pytest.fixture
def observations(expected):
    columns = (expected[k] for k in ("images", "proprio", "text", "points"))
    return [wamkit.Observation(i, p, str(t), point_cloud=c) for i, p, t, c in zip(*columns, strict=True)]


def test_a_data_set_holds_what_it_held(expected):
    store = Store.open(BEFORE / "data")
    values = store.numeric()
    for name in (k for k in expected if k.startswith("column ")):
        now = np.asarray(values[name.removeprefix("column ")], np.float32)[::20]
        assert np.array_equal(now, expected[name]), name
    assert [e.is_demonstration for e in store.episodes].count(False) == 2 and store.layout.point_grid == 4
    assert np.array_equal(store.decode_steps(0, store.cameras[0], [0, 10]), expected["frame"])


def test_a_collection_is_known_as_finished(before, capsys):
    command = ["collect", "--env", "metaworld", "--tasks", "drawer-open-v3", "--episodes", "2", "--off-expert", "1"]
    command += ["--off-expert-steps", "24", "--perturbed-experts", "1", "--perturbed-steps", "30", "--snapshots"]
    command += ["--steps-after-success", "1", "--out", str(before / "data")]
    command += ["--options", "height=32", "width=32", "point_grid=4", "supersample=1"]
    files = {p: p.read_bytes() for p in (before / "data").rglob("*") if p.is_file()}
    assert main(command) == 0
    assert {p: p.read_bytes() for p in (before / "data").rglob("*") if p.is_file()} == files
    command[command.index("--perturbed-steps") + 1] = "31"
    assert main(command) == 1 and "perturbed_steps was 30, now 31" in capsys.readouterr().err


def test_a_run_answers_as_it_did_after_it_is_resumed(resumed, expected, observations):
    weights = load_checkpoint(resumed).weights
    assert {f"weight {k}" for k in weights} == {k for k in expected if k.startswith("weight ")}
    for name, value in weights.items():
        assert np.allclose(value.numpy(), expected[f"weight {name}"], **CLOSE), name
    sample = wamkit.load(resumed).sample(observations, "policy", seed=7)
    assert np.allclose(sample.actions, expected["actions"], **CLOSE)
    assert np.allclose(sample.point_cloud, expected["imagined"], **CLOSE)


def test_a_run_of_a_mixture_knows_its_embodiments(expected, observations):
    alone = [wamkit.Observation(o.images, o.proprio, o.text) for o in observations]
    sample = wamkit.load(BEFORE / "mixture", embodiment="data").sample(alone, "policy", seed=7)
    assert np.allclose(sample.actions, expected["mixture_actions"], **CLOSE)


def test_a_mixture_goes_on_with_the_embodiments_that_it_was_begun_with(before):
    """That version left out the ends of episodes where it measured actions: 0.13 for a mean that is 0.16 now."""
    run, path = Run.open(before / "mixture"), before / "mixture.json"

    def config(out):
        opened = _open_mixture(run.config, path, LoadingOptions(), out)
        own = run_to_dict(run.config, opened.spec, opened.statistics, opened.provenance) | opened.facts
        return json.loads(json.dumps(old_names.without_added(own)))

    saved = old_names.without_added(old_names.run_config(load_checkpoint(before / "mixture").config))
    assert config(before / "mixture") == saved and config(before / "new") != saved


def test_a_configuration_means_what_it_meant():
    saved = json.loads((BEFORE / "unified-config.json").read_text())
    run, spec, statistics = run_from_dict(old_names.run_config(saved))
    assert run.model.targets.future_shift == 2.5 and spec.point_grid == saved["spec"]["points"] == 0
    shapes = {k: list(v.shape) for k, v in build(run, spec, statistics).state_dict().items()}
    assert shapes == json.loads((BEFORE / "unified-state.json").read_text())


def test_an_evaluation_gives_the_same_figures(resumed):
    assert main(["eval", str(resumed), "--episodes", "1", "--held-out", "1"]) == 0
    then, now = (
        {
            r.get("key") or old_names.figure(r["table"], r["name"]): r["value"]
            for r in json.loads(path.read_text())["rows"]
        }
        for path in (BEFORE / "geom-summary.json", resumed / "eval/summary.json")
    )
    assert then.keys() == now.keys()
    for key, value in then.items():
        if "latency" not in key:
            assert now[key] == pytest.approx(value, rel=1e-3), key


def test_every_old_name_is_out_of_use():
    """A name that means something else today could not be told from the old one."""
    for table in (old_names.MODEL, old_names.SPEC, old_names.ENV_OPTIONS, old_names.COLLECT):
        assert not table.keys() & set(table.values())


@pytest.mark.parametrize("more", [None, {"path": "", "freeze": False, "lora": {"rank": 0, "alpha": 0.0}}])
def test_a_backbone_that_was_a_name_or_had_fewer_options_is_the_same_configuration(more):
    """Runs begun with it resume, and finished results are found."""
    from wamkit.nn.options import BackboneConfig
    from wamkit.runs.config import config_from_dict, config_to_dict

    assert old_names.BACKBONE == json.loads(json.dumps(cfg.to_dict(BackboneConfig())))
    for family in ("unified", "mot", "bc", "discrete", "inverse"):
        now = config_to_dict(RECIPES.get(f"metaworld-{family}")())
        for name in ("transformer", "another"):
            then = {**now, "model": {**now["model"], "backbone": name if more is None else {"name": name, **more}}}
            then["model"].pop("image", None)
            present = {**now, "model": {**now["model"], "backbone": {**now["model"]["backbone"], "name": name}}}
            assert old_names.without_added(old_names.run_config(then)) == old_names.without_added(present)
            if name == "transformer" or family != "mot":
                assert config_from_dict(then).model.backbone.name == name
