"""Runs and data sets on the Hub: the real client against a stand-in of the Hub's HTTP interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import ModelCard, constants
from lerobot_folders import Recordings, write_v3
from still_recordings import fill_stills
from tests.data.recordings import fill

import wamkit
from conftest import untrained_run
from hub_server import READ, WRITE, Hub, Repo
from wamkit.cli.main import main
from wamkit.cli.recordings import trained_on
from wamkit.data.format.store import Store
from wamkit.eval.outputs import write_result
from wamkit.eval.recorded import unseen
from wamkit.hub.names import HubError, HubName, hub_name, named, origin
from wamkit.runs.config import home, require_run
from wamkit.runs.run import Run
from wamkit.types import WamkitError

FAST = [
    *("--recipe", "metaworld-bc", "--train.steps", "1", "--train.batch-size", "2", "--train.threads", "1"),
    *("--window.chunk", "4", "--window.frame-offsets", "2", "4", "--train.precision", "fp32"),
    *("--model.width", "16", "--model.depth", "1", "--model.heads", "2", "--model.text.buckets", "64"),
]
RUN, DATA = "alice/drawer", "alice/demos"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub whose owner is signed in, an empty cache, and an empty current folder."""
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    # Versions below 1 know the address of the moment when they were imported, whatever a call says, in some places.
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, huggingface_hub.file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", WRITE)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield server
    server.close()
    assert not server.unknown


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained run with an evaluation."""
    folder = untrained_run(tmp_path_factory.mktemp("run") / "drawer", ["drawer-open-v3"], {})
    row = {
        "key": "closed_loop.success",
        "axis": "Closed loop",
        "table": "Does it solve the tasks?",
        "name": "all | tasks",
    }
    row |= {
        "value": 0.95,
        "low": 0.76,
        "high": 0.99,
        "unit": "",
        "target": "",
        "verdict": "",
        "passed": None,
        "note": "",
    }
    undefined = row | {"key": "open_loop.skill", "name": "skill", "value": float("nan"), "low": None, "high": None}
    summary = {
        "run": str(folder),
        "family": "bc",
        "step": 1,
        "weights": Run.open(folder).digest,
        "command": f"wamkit eval {folder} --episodes 20 --encoder i3d=/data/alice/i3d.safetensors",
        "protocol": {"env": "metaworld", "tasks": ["drawer-open-v3"], "episodes": 20, "seeds": [100, 101, 102]},
        "made_by": {"wamkit": "0.1.0", "commit": "abc", "machine": "a CPU"},
        "rows": [row, undefined],
    }
    write_result(folder / "eval/summary.json", summary)
    write_result(folder / "eval/other/summary.json", summary | {"weights": "f" * 64})  # of other weights
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("data") / "demos", 6).root


def answer(run):
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 40, 50), np.uint8)
    return wamkit.load(run).sample(wamkit.Observation(images, np.ones(4, np.float32), "go"), "policy", seed=3).actions


def files_of(hub, key):
    repo = hub.repos[key]
    return repo.commits[repo.branches["main"]]


def put(hub, key, **files):
    return hub.repos.setdefault(key, Repo()).commit({k.replace("__", "/"): v for k, v in files.items()})


def refusal(capsys, *command):
    """The one line with which a command refuses."""
    capsys.readouterr()
    assert main([str(word) for word in command]) == 1
    told = capsys.readouterr().err.splitlines()
    lines = [line for line in told if not line.startswith(("note: ", "downloading hf://"))]
    assert len(lines) == 1 and lines[0].startswith(f"wamkit {command[0]}: "), told
    return lines[0]


# -- names


def test_names_of_repositories():
    name = hub_name("hf://alice/demos@refs/pr/3:10-20")
    assert name == HubName("alice/demos", "refs/pr/3", (10, 20)) and str(name) == "hf://alice/demos@refs/pr/3:10-20"
    assert hub_name(Path("hf://alice/demos")) == HubName("alice/demos")  # a Path has one slash
    assert hub_name("alice/demos", prefixed=False) == HubName("alice/demos")
    for local in ("demos", "a/b/c", "/a/b", "../b", "./b", "tests/none", "a--b/c", ""):
        assert hub_name(local, prefixed=False) is None, local
    for wrong in ("hf://alice", "hf://a/b/c", "hf://a/b@", "hf://a/../b", "hf://a/b:5", "hf://a/b:5-5", "hf://a b/c"):
        with pytest.raises(HubError, match="hf://"):
            hub_name(wrong)


def test_what_was_downloaded_is_known_by_its_place():
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = f"/x/hub/datasets--alice--demos/snapshots/{commit}"
    assert origin(root) == HubName("alice/demos", commit)
    assert named(f"{root}/.cache/episodes-1-4") == f"hf://alice/demos@{commit}:1-4"
    assert named("/x/hub") == "/x/hub" and origin("/x/datasets--alice--demos") is None
    assert home(Path(f"/x/models--alice--drawer/snapshots/{commit}/model.safetensors")) == Path(
        "alice--drawer@0123456789ab"
    )


def test_a_folder_of_the_name_wins(hub, run, tmp_path):
    (Path("alice")).mkdir()
    Path("alice/drawer").symlink_to(run)
    assert require_run(Path("alice/drawer")) == Path("alice/drawer")
    with pytest.raises(WamkitError, match="there is no run at alice/other: train one"):  # nor is the Hub asked
        require_run(Path("alice/other"))
    assert not hub.requests


# -- runs


def test_a_run_is_pushed_and_answers_elsewhere_to_the_bit(hub, run, capsys):
    assert main(["push", str(run), RUN, "--license", "Apache 2.0"]) == 0
    told = capsys.readouterr().out
    commit = hub.repos[f"model/{RUN}"].branches["main"]
    assert f"pushed: hf://{RUN} at {commit}" in told and "no licence" not in told
    files = files_of(hub, f"model/{RUN}")
    assert sorted(files) == [".gitattributes", "README.md", "evaluations.json", "model.safetensors", "wamkit.json"]
    assert all(np.array_equal(answer(run), answer(name)) for name in (RUN, f"{RUN}@{commit}", f"hf://{RUN}"))
    assert len(hub.sent()) == 2  # wamkit.json and the model, once
    loaded = Run.open(RUN)
    assert (loaded.digest, loaded.name) == (Run.open(run).digest, RUN) and loaded.label == f"hf://{RUN}@{commit}"
    assert loaded.home == Path(f"alice--drawer@{commit[:12]}")
    assert main(["push", str(run), RUN, "--license", "apache-2.0"]) == 0  # again: nothing has changed
    assert hub.repos[f"model/{RUN}"].branches["main"] == commit


def test_the_card_says_what_the_hub_and_a_reader_want_to_know(hub, run):
    assert main(["push", str(run), RUN, "--license", "apache-2.0"]) == 0
    card = ModelCard(files_of(hub, f"model/{RUN}")["README.md"].decode())
    assert (card.data.library_name, card.data.license, card.data.pipeline_tag) == ("wamkit", "apache-2.0", "robotics")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("closed_loop.success", 0.95, "metaworld")
    assert "[0.76, 0.99]" in result.metric_name
    for text in (
        "| leaf | control",
        "| policy | actions from an observation and an instruction |",
        r"all \| tasks | 0.95 | \[0.76, 0.99\] |",
        "| skill | undefined |  |",
        "tasks drawer-open-v3",
        "seeds 100 to 102, 3",
        "wamkit eval alice/drawer --episodes 20 --encoder i3d=i3d.safetensors",
        "apache-2.0",
    ):
        assert text in card.text, text
    assert str(run) not in card.text
    told = json.loads(files_of(hub, f"model/{RUN}")["evaluations.json"])
    assert len(told) == 1 and told[0]["rows"][0]["low"] == 0.76  # none of other weights


def test_a_dry_run_asks_nothing_and_two_million_parameters_take_ten_megabytes(hub, tmp_path, capsys):
    big = untrained_run(tmp_path / "big", ["drawer-open-v3"], {}, family="unified", width=152, depth=3)
    parameters = sum(p.numel() for p in Run.open(big).family().parameters())
    assert main(["push", str(big), RUN, "--dry-run"]) == 0
    told = capsys.readouterr().out
    total = int(told.split(" bytes\n")[0].split()[-1].replace(",", ""))
    assert 1.9e6 < parameters < 2.2e6 and total < 10e6
    assert "model.safetensors" in told and "note: no licence is stated" in told
    assert not hub.requests and not hub.repos


def test_a_run_once_loaded_is_loaded_offline(hub, run, monkeypatch, capsys):
    main(["push", str(run), RUN])
    wanted = answer(RUN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert np.array_equal(answer(RUN), wanted) and len(hub.requests) == asked
    assert "is used as it was last downloaded" in capsys.readouterr().err
    assert "was not downloaded before, and HF_HUB_OFFLINE is set" in refusal(capsys, "show", "hf://alice/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers
    assert np.array_equal(answer(RUN), wanted)
    assert "cannot be reached" in refusal(capsys, "show", "hf://alice/other")


def test_each_revision_is_what_it_was(hub, run, tmp_path, capsys):
    other = untrained_run(tmp_path / "other", ["drawer-open-v3"], {}, seed=1)
    main(["push", str(run), RUN])
    first = hub.repos[f"model/{RUN}"].branches["main"]
    assert Run.open(RUN).digest == Run.open(run).digest != Run.open(other).digest
    main(["push", str(other), RUN])
    main(["push", str(run), f"{RUN}@trial"])
    assert Run.open(RUN).digest == Run.open(other).digest  # the branch has moved
    assert all(Run.open(f"{RUN}@{at}").digest == Run.open(run).digest for at in (first, "trial"))
    assert "has no revision 'none'" in refusal(capsys, "show", f"{RUN}@none")
    gone = "0" * 40
    assert "its history was rewritten" in refusal(capsys, "show", f"{RUN}@{gone}")
    assert "names a commit" in refusal(capsys, "push", run, f"{RUN}@{gone}")


def test_a_download_that_is_cut_goes_on_where_it_was(hub, run, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what has arrived is kept in pieces of this size
    main(["push", str(run), RUN])
    hub.cut.add("model.safetensors")
    assert np.array_equal(answer(RUN), answer(run))
    size = len(files_of(hub, f"model/{RUN}")["model.safetensors"])
    ranges = [r for m, path, r in hub.requests if m == "GET" and path.endswith("model.safetensors")]
    assert ranges == ["", f"bytes={size // 2 // 10_000 * 10_000}-"]


def test_a_download_that_arrives_altered_is_noticed_and_removed(hub, run, capsys):
    main(["push", str(run), RUN])
    for name in ("wamkit.json", "model.safetensors"):
        hub.altered = {name}
        assert f"{name} arrived damaged" in refusal(capsys, "export", f"hf://{RUN}", "--out", "x.safetensors")
    hub.altered = set()
    assert np.array_equal(answer(RUN), answer(run))
    path = require_run(Path(RUN))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.resolve().write_bytes(raw)  # at rest
    line = refusal(capsys, "export", f"hf://{RUN}", "--out", "x.safetensors")
    assert f"remove {path.resolve()} and load hf://{RUN}" in line


def test_only_a_model_of_wamkit_is_downloaded(hub, run, capsys):
    put(hub, "model/bert/base", **{"config.json": b"{}", "model.safetensors": b"x" * 999})
    put(hub, "model/act/policy", **{"wamkit.json": b'{"type": "act"}', "model.safetensors": b"x"})
    newer = {"wamkit.json": b'{"format": 9, "files": {"model.safetensors": 1}}'}
    put(hub, "model/new/run", **newer)
    assert "is no model of wamkit: it lacks wamkit.json or model.safetensors" in refusal(capsys, "show", "bert/base")
    assert "it lacks wamkit.json or model" in refusal(capsys, "show", "hf://new/run") and not hub.sent()
    assert "wamkit.json is damaged or another program's" in refusal(capsys, "show", "hf://act/policy")
    put(hub, "model/new/run", **newer, **{"model.safetensors": b"x"})
    assert "has format 9, and this wamkit reads 1: upgrade wamkit" in refusal(capsys, "show", "hf://new/run")
    assert "model.safetensors" not in hub.sent()


def test_a_model_other_than_its_description_is_refused(hub, run, capsys):
    main(["push", str(run), RUN])
    files = dict(files_of(hub, f"model/{RUN}"))
    hub.repos[f"model/{RUN}"].commit(files | {"model.safetensors": b"\0" * 64})
    with pytest.raises(HubError, match="model.safetensors is not the file that was pushed"):
        wamkit.load(RUN)
    assert "model.safetensors" not in hub.sent()


def test_who_may_not_push(hub, run, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", READ)
    assert "your token may not do this" in refusal(capsys, "push", run, RUN)
    monkeypatch.setenv("HF_TOKEN", "hf_nonsense")
    assert "does not accept your token" in refusal(capsys, "push", run, RUN)
    monkeypatch.delenv("HF_TOKEN")
    asked = len(hub.requests)
    assert "there is no token" in refusal(capsys, "push", run, RUN) and len(hub.requests) == asked
    assert not hub.repos


def test_what_is_private_or_gated_is_said(hub, run, monkeypatch, capsys):
    main(["push", str(run), RUN, "--private"])
    assert hub.repos[f"model/{RUN}"].private
    main(["push", str(run), "alice/gated"])
    hub.repos["model/alice/gated"].gated = True
    for token in (READ, ""):
        monkeypatch.setenv("HF_TOKEN", token)
        assert f"shows you no model {RUN}: check the name, or sign in" in refusal(capsys, "show", f"hf://{RUN}")
        with pytest.raises(HubError, match=r"is gated: ask for access at http.*/alice/gated, then sign in"):
            wamkit.load("alice/gated")


def test_what_others_wrote_is_not_overwritten(hub, run, data, capsys):
    before = put(hub, "model/bert/base", **{"config.json": b"{}"})
    assert "holds what wamkit did not write (config.json, but no wamkit.json)" in refusal(
        capsys, "push", run, "bert/base"
    )
    assert hub.repos["model/bert/base"].branches["main"] == before
    put(hub, "dataset/bert/text", **{"train.csv": b"1"})
    assert "name another data set" in refusal(capsys, "push", data, "bert/text")


@pytest.mark.parametrize("to", ["alice", "a/b/c", "hf://a", "a/b:0-3", "a b/c"])
def test_a_place_that_is_none(hub, run, to, capsys):
    assert "USER/NAME" in refusal(capsys, "push", run, to)


def test_a_missing_package_is_named(hub, run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'wamkit[hub]'" in refusal(capsys, "show", "hf://alice/drawer")
    assert "train one with" in (line := refusal(capsys, "eval", "alice/drawer")) and "wamkit[hub]" in line


def test_a_full_disk_is_noticed_before(hub, run, monkeypatch, capsys):
    main(["push", str(run), RUN])
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 10}))
    assert "GB free: free some space" in refusal(capsys, "show", f"hf://{RUN}")
    assert not hub.sent()


def test_the_commands_take_a_name_and_the_environment_says_where(hub, run, tmp_path):
    """As a user types it, in a process of its own; and without a name on the Hub nothing of it is imported."""
    main(["push", str(run), RUN])
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    code = (
        "import sys; from pathlib import Path; import wamkit; from wamkit.runs.config import require_run\n"
        f"assert 'huggingface_hub' not in sys.modules; print(require_run(Path('{RUN}')))\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.is_relative_to(tmp_path / "home") and named(path).startswith(f"hf://{RUN}@")
    assert path.read_bytes() == files_of(hub, f"model/{RUN}")["model.safetensors"]


# -- data sets


def test_a_data_set_is_pushed_with_the_tag_that_lerobot_reads(hub, data, capsys):
    assert main(["push", str(data), DATA, "--license", "cc-by-4.0"]) == 0
    repo, files = hub.repos[f"dataset/{DATA}"], files_of(hub, f"dataset/{DATA}")
    assert repo.tags == {"v3.0": repo.branches["main"]}
    local = {p.relative_to(data).as_posix() for p in data.rglob("*") if p.is_file() and ".cache" not in p.parts}
    assert set(files) == local | {"README.md", ".gitattributes"}
    assert huggingface_hub.DatasetCard(files["README.md"].decode()).data.license == "cc-by-4.0"
    one, other = Store.open(data), Store.open(f"hf://{DATA}")
    assert one.episodes == other.episodes and named(other.root) == f"hf://{DATA}@{repo.branches['main']}"
    assert all(np.array_equal(v, other.numeric()[k]) for k, v in one.numeric().items())
    assert np.array_equal(one.decode(5, "wrist"), other.decode(5, "wrist"))


def test_a_data_set_that_shrank_leaves_nothing_behind(hub, data, tmp_path):
    main(["push", str(data), DATA])
    first = hub.repos[f"dataset/{DATA}"].branches["main"]
    main(["push", str(fill(tmp_path / "less", 2).root), DATA])
    assert len(Store.open(f"hf://{DATA}")) == 2 and len(Store.open(f"hf://{DATA}@{first}")) == 6
    assert not any("000002" in name or "file-002" in name for name in files_of(hub, f"dataset/{DATA}"))
    repo = hub.repos[f"dataset/{DATA}"]
    assert repo.tags == {"v3.0": repo.branches["main"]}  # the tag has moved


def check_selection(whole, part, first):
    """`part` is the episodes from `first` on of `whole`, with numbers of its own."""
    for number, meta in enumerate(part.episodes):
        was = whole.episodes[first + number]
        assert (meta.index, meta.length, meta.text, meta.seed) == (number, was.length, was.text, was.seed)
        one, other = whole.episode(first + number), part.episode(number)
        for field in ("images", "proprio", "action", "action_expert", "reward", "success"):
            assert np.array_equal(getattr(one, field), getattr(other, field)), field
    assert (
        part.numeric()["episode_index"].tolist()
        == np.repeat(range(len(part)), [m.length for m in part.episodes]).tolist()
    )
    assert part.numeric()["index"].tolist() == list(range(part.frames))


@pytest.mark.parametrize(("first", "last"), [(0, 2), (2, 5)])
def test_of_some_episodes_only_their_files_are_downloaded(hub, data, first, last):
    main(["push", str(data), DATA])
    whole, part = Store.open(data), Store.open(f"hf://{DATA}:{first}-{last}")
    check_selection(whole, part, first)
    assert part.snapshots(1)[0].attributes == whole.snapshots(first + 1)[0].attributes
    numbers = {name.rsplit("-", 1)[1].split(".")[0][-3:] for name in hub.sent() if not name.startswith("meta/")}
    assert numbers == {f"{i:03d}" for i in range(first, last)}
    asked = len(hub.sent())
    assert len(Store.open(f"hf://{DATA}:{first}-{last}")) == last - first and len(hub.sent()) == asked


def test_files_that_repositories_share_in_the_cache_are_read(hub, data, tmp_path):
    """As the client lays out large files: a link to a link to one place for all repositories."""
    main(["push", str(data), DATA])
    root = Store.open(f"hf://{DATA}").root
    for blob in [p for p in (tmp_path / "cache").glob("datasets--*/blobs/*") if len(p.name) == 64]:
        shared = tmp_path / "cache/blobs" / blob.name[:2] / blob.name
        shared.parent.mkdir(parents=True, exist_ok=True)
        blob.rename(shared)
        blob.symlink_to(os.path.relpath(shared, blob.parent))
    whole, part = Store.open(root), Store.open(f"hf://{DATA}:2-4")
    check_selection(whole, part, 2)
    assert part.video_path(0, "front").is_symlink()


def test_some_episodes_of_files_that_hold_many(hub, tmp_path):
    """As lerobot writes them."""
    root = write_v3(tmp_path / "many", Recordings(lengths=(9, 7, 8, 6)))
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    hub.repos[f"dataset/{DATA}"] = Repo()
    hub.repos[f"dataset/{DATA}"].commit(files)
    check_selection(Store.open(root), Store.open(f"hf://{DATA}:1-3"), 1)


def test_some_episodes_with_images_and_depth_in_their_data_files(hub, tmp_path):
    root = fill_stills(tmp_path / "stills").root
    main(["push", str(root), DATA])
    whole, part = Store.open(root), Store.open(f"hf://{DATA}:1-3")
    check_selection(whole, part, 1)
    assert np.array_equal(whole.decode_depth(2, "far"), part.decode_depth(1, "far"))


def test_a_run_notes_the_commit_of_its_data_and_goes_on_with_that_alone(hub, data, tmp_path, capsys):
    main(["push", str(data), DATA])
    commit = hub.repos[f"dataset/{DATA}"].branches["main"]
    command = ["train", "--data", f"hf://{DATA}:1-4", "--out", "trained", *FAST, "--episodes.held-out", "1"]
    assert main(command) == 0
    run = Run.open("trained")
    assert run.provenance.hub == f"hf://{DATA}@{commit}:1-4" and run.provenance.episodes == 3
    assert "next: wamkit eval trained --offline" in capsys.readouterr().out
    learned = {1, 2, 3} - {1 + k for k in run.described["held_out"]}
    for at, first, stop in (("", 0, 6), (":1-4", 1, 4), (":2-6", 2, 6)):
        left = [k for k in range(stop - first) if first + k not in learned]
        assert np.flatnonzero(unseen(run, Store.open(f"hf://{DATA}{at}"))).tolist() == left, at
    main(["push", str(fill(tmp_path / "more", 7).root), DATA])  # the branch moves
    assert str(trained_on(run.path)).endswith(f"{DATA}@{commit}:1-4")  # `--offline` stays where it was
    line = refusal(capsys, *command, "--train.steps", "2")
    assert line.startswith(f"wamkit train: trained was begun on hf://{DATA}@{commit}:1-4, and {DATA} is at ")
    assert f"continue it with --data hf://{DATA}@{commit}:1-4" in line
    command[2] = f"hf://{DATA}@{commit}:1-4"
    assert main([*command, "--train.steps", "2"]) == 0 and Run.open("trained").step == 2


def test_a_mixture_takes_demonstrations_from_the_hub(hub, tmp_path):
    root = fill(tmp_path / "described", 6).root
    assert main(["describe", str(root), "--set", "embodiment=test", "cameras.front.role=scene", "--write"]) == 0
    main(["push", str(root), DATA])
    commit = hub.repos[f"dataset/{DATA}"].branches["main"]
    assert main(["mix", f"hf://{DATA}:0.5:1-3", "--out", "mix.json", "--size", "16", "16"]) == 0
    (source,) = json.loads(Path("mix.json").read_text())["sources"]
    assert source["data"] == f"hf://{DATA}@{commit}" and source["demonstrations"] == [1, 3] and source["weight"] == 0.5
    numbers = {name.rsplit("-", 1)[1].split(".")[0] for name in hub.sent() if name.startswith("videos/")}
    assert numbers == {"001", "003"}  # the second and the third demonstration: 2 is none
    assert main(["train", "--data", "mix.json", "--out", "mixed", *FAST]) == 0
    run = Run.open("mixed")
    assert run.sources["demos"].hub == f"hf://{DATA}@{commit}" and run.described["mixture"]["sources"][0] == source
    assert np.flatnonzero(unseen(run, Store.open(f"hf://{DATA}"))).tolist() == [0, 2, 4, 5]


def test_a_data_set_that_cannot_be_used(hub, data, capsys):
    put(hub, "dataset/some/csv", **{"train.csv": b"1"})
    assert "is no data set of LeRobot's version 3.0" in refusal(capsys, "validate", "hf://some/csv")
    assert "shows you no data set some/none" in refusal(capsys, "validate", "hf://some/none")
    main(["push", str(data), DATA])
    assert "holds 6 episodes; 2 to 9 were asked for" in refusal(capsys, "validate", f"hf://{DATA}:2-9")
    files = dict(files_of(hub, f"dataset/{DATA}"))
    del files["data/chunk-000/file-003.parquet"]
    hub.repos[f"dataset/{DATA}"].commit(files)
    line = refusal(capsys, "validate", f"hf://{DATA}")
    assert "holds no file data/chunk-000/file-003.parquet; name another revision" in line
    assert main(["validate", f"hf://{DATA}:0-3"]) == 0


def test_a_name_that_leads_out_of_the_cache_is_refused(hub, data, capsys, tmp_path):
    main(["push", str(data), DATA])
    for evil in ("../../../evil.json", "/etc/evil.json", "meta/../../evil.json", "meta\\evil.json", "meta//evil.json"):
        hub.listed = {"meta/stats.json": evil}
        with pytest.raises(HubError, match="which leads elsewhere"):
            Store.open(f"hf://{DATA}")
    assert not hub.sent()


def test_a_damaged_data_set_is_not_pushed(hub, tmp_path, capsys):
    root = fill(tmp_path / "demos", 2).root
    video = next(root.glob("videos/**/*.mp4"))
    raw = bytearray(video.read_bytes())
    raw[len(raw) // 2] ^= 1
    video.write_bytes(raw)
    assert f"{video} (episode 0): its content has changed" in refusal(capsys, "push", root, DATA)
    assert not hub.requests


def test_downloaded_data_are_not_written_to(hub, data, capsys):
    main(["push", str(data), DATA])
    Store.open(f"hf://{DATA}")
    for command in (["describe", f"hf://{DATA}", "--write"], ["validate", f"hf://{DATA}", "--accept"]):
        assert "is shared by all that use the Hub's cache" in refusal(capsys, *command)
    line = refusal(capsys, "collect", "--tasks", "drawer-open-v3", "--out", "hf://a/data")
    assert "could not write hf:/a/data/collect.json: it is on the Hub" in line
