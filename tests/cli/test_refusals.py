"""Refusals: wrong names, options and outputs are answered in one line, before torch is loaded and before any effect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import contextlib, io, json, sys
from wamkit.cli.main import main

for argv in json.loads(sys.stdin.read()):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(argv)
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, err.getvalue(), sorted({"torch", "mujoco", "metaworld"} & set(sys.modules))]))
"""


def refusals(commands: list[list[str]], cwd: Path) -> list[tuple[int, str]]:
    """Exit code and message of each command, all in one process, which must not load torch or a simulator for them."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = json.dumps(commands)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=told, cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for argv, (code, message, heavy) in zip(commands, found, strict=True):
        assert not heavy, f"{argv} loads {heavy}"
        assert code in (1, 2) and "Traceback" not in message and len(message.strip().splitlines()) == 1, (argv, message)
    return [(code, message) for code, message, _ in found]


TRAIN = ["train", "--data", "d", "--out", "r"]
COLLECT = ["collect", "--tasks", "drawer-open-v3", "--out", "o"]
NAMES = [
    (["trian"], "unknown command 'trian' (did you mean 'train'?)"),
    (["train"], "--data PATH"),
    ([*TRAIN, "--train.stps", "3"], "did you mean --train.steps?"),
    ([*TRAIN, "--model.wdith", "3"], "did you mean --model.width?"),
    ([*TRAIN, "--recipe", "metaworld-unifed"], "did you mean 'metaworld-unified'?"),
    ([*TRAIN, "--train.steps", "many"], "--train.steps: invalid literal"),
    ([*TRAIN, "--train.device", "policy"], "device = 'policy': must be one of cpu, cuda, mps"),
    ([*TRAIN, "--train.device", "cuda:x"], "device = 'cuda:x': must be one of cpu, cuda, mps"),
    (["train", "--data", "", "--out", "r"], "--data: an empty text names no file or folder"),
    (["eval", "a\nb"], "there is no run at a b: train one with"),
    ([*TRAIN, "--model.width", "33"], "width 33 must be even: 32 or 34 would fit"),
    ([*TRAIN, "--model.program", "video_then"], "video_then_action"),
    (TRAIN, "d: there is no such folder; record data first (wamkit collect) or name another"),
    (["collect", "--env", "metawrld", "--tasks", "x", "--out", "o"], "unknown environment 'metawrld' (did you mean"),
    (["collect", "--tasks", "drawer-opn-v3", "--out", "o"], "did you mean 'drawer-open-v3'?"),
    ([*COLLECT, "--options", "heigt=3"], "environment 'metaworld': heigt: unknown key (did you mean 'height'?)"),
    ([*COLLECT, "--options", "height=tall"], "environment 'metaworld': height: expected int"),
    ([*COLLECT, "--policies", "nowhere", "--policy-episodes", "1"], "there is no run at nowhere"),
    (["import", "lerobt", "x", "--out", "y"], "did you mean 'lerobot2'?"),
    (["import", "video", "x", "--out", "y", "--optons.fps", "3"], "did you mean --options.fps?"),
    (["import", "video", "nowhere", "--out", "y"], "nowhere: there is no such file or folder"),
    (["mix", "nowhere", "--out", "m.json"], "nowhere: there is no such folder"),
    (["mix", "x:y", "--out", "m.json"], "'x:y' is not FOLDER:WEIGHT:FIRST-LAST:video"),
    (["validate", "nowhere"], "nowhere: there is no such folder"),
    (["browse", "nowhere"], "nowhere: there is no such folder"),
    (["eval", "nowhere"], "there is no run at nowhere: train one with"),
    (["eval", "a.safetensors"], "there is no run at a.safetensors: export one with `wamkit export RUN --out a.safet"),
    (["eval", "r", "--protocol", "metaworld-mt11"], "did you mean 'metaworld-mt10'?"),
    (["eval", "r", "--env", "metawrld"], "did you mean 'metaworld'?"),
    (["eval", "r", "--env", "metaworld", "--tasks", "x-v3"], "unknown task 'x-v3' of metaworld"),
    (["eval", "r", "--env", "metaworld", "--options", "heigt=3"], "did you mean 'height'?"),
    (["eval", "r", "--query", "polcy"], "there is no query 'polcy' (did you mean 'policy'?)"),
    (["eval", "r", "--encoder", "lpips-alx=T,H"], "an encoder is named by its kind and weights"),
    (["eval", "r", "--suite", "ful"], "Expected one of ('main', 'full') (did you mean 'full'?)"),
    (["eval", "r", "--protocol", "mt10"], "unknown protocol 'mt10' (did you mean 'metaworld-mt10'?)"),
    (["eval", "r", "--encoder", "dinov3=M"], "not 'dinov3=M' (did you mean 'dinov2'?)"),
    (["mix", "d", "--out", "m.json", "--by", "sampel"], "(did you mean 'sample'?)"),
    (["validate", "d", "--evry-frame"], "(did you mean --every-frame?)"),
    (["check-env", "pusht", "--task", "pusht"], "unknown task 'pusht' of pusht (did you mean 'push-t'?)"),
    (["list", "--tasks", "metawrld"], "did you mean 'metaworld'?"),
    (["show", "unifid"], "(did you mean 'unified'?)"),
    (["robustness", "r", "--env", "metawrld"], "did you mean 'metaworld'?"),
    (["robustness", "r", "--severities", "1.5"], "severities = (1.5,): must be between 0 and 1"),
    (["robustness", "nowhere"], "there is no run at nowhere"),
    (["sample", "r", "--query", "jiont"], "did you mean 'joint'?"),
    (["sample", "nowhere"], "there is no run at nowhere"),
    (["diagnose", "nowhere"], "there is no run at nowhere"),
    (["rank", "w", "a", "b"], "a ranking needs 4 policies or more, each named once; got 2"),
    (["rank", "w", "a", "b", "c", "d"], "there is no run at w"),
    (["report", "nowhere"], "there is no run at nowhere"),
    (["compare", "leafs"], "unknown comparison 'leafs' (did you mean 'leaves'?)"),
    (["compare", "leaves", "--only", "unifed"], "'leaves' has no row 'unifed' (did you mean 'unified'?)"),
    (["compare", "leaves", "--data", "nowhere"], "nowhere: there is no such folder"),
    (["list", "--by", "decodr"], "did you mean 'decoder'?"),
    (["show", "unifed"], "'unifed' is no family, recipe or run folder (did you mean 'unified'?)"),
    (["check-env", "metaworl"], "did you mean 'metaworld'?"),
    (["check-env", "metaworld", "--task", "drawer-opn-v3"], "did you mean 'drawer-open-v3'?"),
]


def test_wrong_names_and_options_are_refused_before_torch_is_loaded(tmp_path):
    found = refusals([argv for argv, _ in NAMES], tmp_path)
    for (argv, message), (_, said) in zip(NAMES, found, strict=True):
        assert message in said, (argv, said)
    assert not list(tmp_path.iterdir())


MILLION, BILLION = str(10**6), str(10**9)
ABSURD = [
    ([*TRAIN, "--cache-gb", "nan"], "cache_gb = nan: must be at least 0"),
    ([*TRAIN, "--feature-cache-gb", "inf"], "feature_cache_gb = inf: must be at least 0"),
    ([*TRAIN, "--model.width", "65536"], "width = 65536: must be at most 32768"),
    ([*TRAIN, "--model.depth", "20000"], "depth = 20000: must be at most 512"),
    ([*TRAIN, "--model.heads", BILLION], "heads = 1000000000: must be at most 65536"),
    ([*TRAIN, "--model.codec-channels", BILLION], "codec_channels = 1000000000: must be at most 65536"),
    ([*TRAIN, "--model.text.buckets", BILLION], "buckets = 1000000000: must be at most"),
    ([*TRAIN, "--model.proprio-noise", "1e30"], "proprio_noise = 1e+30: must be at most 1000000"),
    ([*TRAIN, "--train.batch-size", BILLION], "batch_size = 1000000000: must be at most 65536"),
    ([*TRAIN, "--train.steps", str(10**12)], "steps = 1000000000000: must be at most 1000000000"),
    ([*TRAIN, "--train.threads", MILLION], "threads = 1000000: must be at most 256"),
    ([*TRAIN, "--train.lr", "inf"], "lr = inf: must be at least"),
    ([*TRAIN, "--train.lr", "1e30"], "lr = 1e+30: must be at most 1000"),
    ([*TRAIN, "--train.seed", "-1"], "seed = -1: must be between 0 and"),
    ([*TRAIN, "--train.seed", str(2**70)], f"seed = {2**70}: must be between 0 and"),
    ([*TRAIN, "--train.weights", "future", "1e30"], "future weighs 1e+30: must be between 0 and 1000000"),
    ([*TRAIN, "--window.chunk", MILLION], "chunk = 1000000: must be at most 10000"),
    ([*TRAIN, "--window.frame-offsets", BILLION], "frame_offsets = (1000000000,): must be between 1 and 16"),
    ([*TRAIN, "--window.past-offsets", f"-{BILLION}"], "past_offsets = (-1000000000,): must be at least -1000000"),
    ([*TRAIN, "--episodes.labelled", str(10**8)], "labelled = 100000000: must be at most 1000000"),
    ([*COLLECT, "--episodes", BILLION], "episodes = 1000000000: must be at most 1000000"),
    ([*COLLECT, "--max-attempts", BILLION], "max_attempts = 1000000000: must be at most 1000"),
    ([*COLLECT, "--off-expert-steps", BILLION], "off_expert_steps = 1000000000: must be at most 1000000"),
    ([*COLLECT, "--noise", "nan"], "noise = (nan,): must be at least 0"),
    ([*COLLECT, "--processes", MILLION], "processes = 1000000: must be at most 256"),
    ([*COLLECT, "--seed", "-1"], "seed = -1: must be between 0 and"),
    ([*COLLECT, "--options", f"height={BILLION}"], "height = 1000000000: must be at most 4096"),
    ([*COLLECT, "--options", f"point_grid={BILLION}"], "point_grid = 1000000000: must be at most 1024"),
    ([*COLLECT, "--options", f"supersample={BILLION}"], "supersample = 1000000000: must be at most 16"),
    ([*COLLECT, "--options", "height=4096", "supersample=16"], "supersample = 16: images of 4096x64 pixels would be"),
    ([*COLLECT, "--options", "height=" + 10**5 * "["], "environment 'metaworld': height: expected int, found '[[["),
    ([*COLLECT, "--options", f"height={10**400}"], "environment 'metaworld': height: expected int, found '1000"),
    ([*COLLECT, "--options", "sway=NaN"], "environment 'metaworld': sway: expected float, found 'NaN'"),
    ([*TRAIN, "--train.batch-size", str(10**400)], "0: must be at most 65536"),
    ([*TRAIN, "--window.frame-offsets", *(2000 * ["8"])], " [...] "),
    (["eval", "r", "--query", 5000 * "x"], "xx [...] "),
    (["mix", "a", "--out", "m.json", "--views"], "views are empty: name one at least"),
    (["rank", "w", "a", "--classifier-steps", BILLION], "classifier_steps = 1000000000: must be at most 100000"),
    ([*COLLECT, "--options", f"max_steps={BILLION}"], "max_steps = 1000000000: must be at most 1000000"),
    (["mix", "a", "--out", "m.json", "--size", BILLION, "64"], "size = (1000000000, 64): must be at most 4096"),
    (["mix", "a:1e300", "--out", "m.json"], "weight = 1e+300: must be at most 1000000000"),
    (["mix", "a:nan", "--out", "m.json"], "weight = nan: must be at least 1e-09"),
    (["import", "video", "x", "--out", "y", "--options.fps", "nan"], "fps = nan: must be "),
    (["import", "video", "x", "--out", "y", "--limit", "-3"], "limit = -3: must be at least 1"),
    (["import", "umi", "x", "--out", "y", "--options.every", "0"], "every = 0: must be at least 1"),
    (["browse", "d", "--port", MILLION], "port = 1000000: must be between 0 and 65535"),
    (["eval", "r", "--episodes", BILLION], "episodes = 1000000000: must be at most 1000000"),
    (["eval", "r", "--processes", MILLION], "processes = 1000000: must be at most 256"),
    (["eval", "r", "--env", "pusht", "--options", f"width={BILLION}"], "width = 1000000000: must be at most 4096"),
    (["robustness", "r", "--severities", "nan"], "severities = (nan,): must be between 0 and 1"),
    (["robustness", "r", "--steps", "0"], "steps = 0: must be at least 1"),
    (["sample", "r", "--seed", str(2**70)], "must be between 0 and"),
    (["diagnose", "r", "--stride", BILLION], "stride = 1000000000: must be at most 65536"),
    (["rank", "w", "a", "--spread", "inf"], "spread = inf: must be at least 0"),
    (["compare", "leaves", "--episodes", "0"], "episodes = 0: must be at least 1"),
]


def test_absurd_numbers_are_refused_before_torch_is_loaded(tmp_path):
    found = refusals([argv for argv, _ in ABSURD], tmp_path)
    for (argv, message), (_, said) in zip(ABSURD, found, strict=True):
        assert message in said, (argv, said)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with files of somebody else, a data set in name, and a run in name."""
    for name in ("theirs.json", "theirs.html", "theirs.svg", "theirs.md", "foreign/config.json", "data/meta/info.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"theirs": true}')
    (tmp_path / "foreign/joint-000.npz").write_text("theirs")
    (tmp_path / "run").mkdir()
    (tmp_path / "file").write_text("theirs")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages/leaves.md").write_text("# Leaves\n")
    (tmp_path / "link.json").symlink_to(tmp_path / "theirs.json")
    os.mkfifo(tmp_path / "pipe.json")
    return tmp_path


FOREIGN = "a file that wamkit did not write is there; move it, or name another"
OUTPUTS = [
    (["mix", "data", "--out", "theirs.json"], FOREIGN),
    (["mix", "data", "--out", "link.json"], "could not write link.json: it is a link"),
    (["mix", "data", "--out", "pipe.json"], "could not write pipe.json: it is a pipe"),
    (["mix", "data", "--out", "/dev/null"], "could not write /dev/null: it is a device"),
    (["mix", "data", "--out", "data"], "could not write data: it is a folder"),
    (["mix", "data", "--out", "file/m.json"], "could not write file: a file is in the way"),
    (["report", "run", "--out", "theirs.html"], FOREIGN),
    (["report", "run", "--out", "theirs.new"], FOREIGN),  # it writes theirs.json beside the page
    (["report", "run", "--out", "pipe.html"], "could not write pipe.json: it is a pipe"),
    (["show", "unified", "--out", "theirs.svg"], FOREIGN),
    (["show", "unified", "--out", "/dev/null"], "it is a device"),
    (["validate", "data", "--out", "theirs.html"], FOREIGN),
    (["sample", "run", "--query", "joint", "--out", "foreign"], FOREIGN),
    (["sample", "run", "--out", "file"], "could not write file: a file is in the way"),
    (["compare", "leaves", "--data", "data", "--out", "pages"], FOREIGN),
    (["collect", "--tasks", "drawer-open-v3", "--out", "file"], "could not write file: a file is in the way"),
    (
        ["collect", "--tasks", "drawer-open-v3", "--out", "/dev/null"],
        "could not write /dev/null: a device is in the way",
    ),
    (["train", "--data", "data", "--out", "file"], "could not write file: a file is in the way"),
    (["import", "video", "data", "--out", "file"], "could not write file: a file is in the way"),
]


def test_outputs_that_wamkit_did_not_write_stay_as_they_are(place):
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    found = refusals([argv for argv, _ in OUTPUTS], place)
    for (argv, message), (_, said) in zip(OUTPUTS, found, strict=True):
        assert message in said, (argv, said)
    assert before == {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    assert (place / "link.json").is_symlink()
