"""The plug-in with lerobot itself: `make interop` runs these tests in an environment that has both."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import SMALL, command
from fake_robot import IMAGE, STATE
from lerobot.configs import PreTrainedConfig
from lerobot.envs import make_env, make_env_config, make_env_pre_post_processors
from lerobot.policies import make_policy, make_pre_post_processors
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.import_utils import register_third_party_plugins

from wamkit.envs.spec import EnvSpec
from wamkit.eval.protocols import Protocol
from wamkit.eval.suites.closed_loop import play
from wamkit.inference.model import load
from wamkit.inference.policy import Policy, Session
from wamkit.runs.run import Run
from wamkit.types import Observation, WamkitError

SEED, STEPS, TASK = 1_000_000, 30, "drawer-open-v3"
register_third_party_plugins()
torch.set_num_threads(1)  # from the fixtures on: sums over threads round differently


def acted(policy_config: PreTrainedConfig, trained: Path, rows: int) -> dict:
    """Actions and rewards of `rows` episodes in lerobot's loop, in one batch."""
    env_config = make_env_config("wamkit", run=str(trained), task=TASK, options={"max_steps": STEPS})
    env = make_env(env_config, n_envs=rows)[TASK][0]
    policy = make_policy(policy_config, env_cfg=env_config).eval()
    before, after = make_pre_post_processors(policy_config, policy_config.pretrained_path)
    seeds = list(range(SEED, SEED + rows))
    around = make_env_pre_post_processors(env_config, policy_config)
    try:
        return rollout(env, policy, *around, before, after, seeds=seeds)
    finally:
        env.close()


@pytest.fixture(scope="session")
def episodes(trained) -> list:
    """The same episodes in wamkit's loop."""
    spec = Run.open(trained).provenance.env
    env = EnvSpec(spec.env, (TASK,), {**spec.options, "max_steps": STEPS})
    return play(Run.open(trained), Protocol(env), TASK, range(SEED, SEED + 2))


def config(run: Path, **more) -> PreTrainedConfig:
    return PreTrainedConfig.get_choice_class("wamkit")(run=str(run), seed=SEED, device="cpu", **more)


def same(theirs: dict, episodes: list) -> bool:
    """True if actions and rewards of all episodes are equal to the bit."""
    actions, rewards = theirs["action"].numpy(), theirs["reward"].numpy().astype(np.float32)
    assert [len(episode) for episode in episodes] == [STEPS] * len(actions)
    pairs = [(x, y) for i, e in enumerate(episodes) for x, y in ((actions[i], e.action), (rewards[i], e.reward))]
    return all(np.array_equal(x, y) for x, y in pairs)


def test_actions_and_rewards_are_those_of_wamkit_to_the_bit(trained, episodes):
    """In a batch of two environments, each with the noise of its own seed."""
    assert same(acted(config(trained), trained, 2), episodes)


def test_a_folder_for_lerobot_acts_like_the_run(folder, trained, episodes):
    out = folder / "policy"
    done = command("python", "-m", "lerobot_policy_wamkit", trained, out)
    assert not done.returncode, done.stderr
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"} <= names
    assert all(name.endswith((".json", ".safetensors")) for name in names)
    read = PreTrainedConfig.from_pretrained(out, cli_overrides=[f"--seed={SEED}", "--device=cpu"])
    read.pretrained_path = out
    assert same(acted(read, trained, 2), episodes)


def test_lerobot_train_trains_as_wamkit_train_does_to_the_bit(folder, data, trained):
    """With a checkpoint and an evaluation in between, more trackers, and again after it was resumed with more steps."""
    out, run = folder / "lerobot-train", folder / "runs/lerobot"
    options = [*SMALL, "--train.log-every", "1", "--trackers", "csv", "tensorboard"]
    words = [
        "--policy.type=wamkit",
        f"--policy.run={run}",
        "--policy.push_to_hub=false",
        "--policy.device=cpu",
        f"--policy.train={json.dumps(options)}",
        "--dataset.repo_id=local/data",
        f"--dataset.root={data}",
        "--steps=6",
        "--batch_size=4",
        "--num_workers=0",
        "--save_freq=4",
        "--env_eval_freq=4",
        "--env.type=wamkit",
        f"--env.run={trained}",
        f"--env.task={TASK}",
        "--env.options={max_steps: 5}",
        "--eval.n_episodes=1",
        f"--output_dir={out}",
    ]
    done = command("lerobot-train", *words)
    assert not done.returncode, done.stderr[-3000:]
    assert Run.open(run).digest == Run.open(trained).digest
    for step in (4, 6):
        saved = out / f"checkpoints/{step:06d}/pretrained_model"
        assert Run.open(saved / "model.safetensors").step == step
    assert Run.open(saved / "model.safetensors").digest == Run.open(trained).digest
    assert tracked(run) == list(range(1, 7)) and (run / "tensorboard").is_dir()
    assert f"\ncsv: {run}/csv/metrics.csv, with images and videos beside it\ntensorboard: tensorboard" in done.stdout

    further = shutil.copytree(trained, folder / "runs/further")
    done = command("wamkit", "train", "--data", data, "--out", further, *SMALL, *_steps(8))
    assert not done.returncode, done.stderr
    done = command("lerobot-train", f"--config_path={saved / 'train_config.json'}", "--resume=true", "--steps=8")
    assert not done.returncode, done.stderr[-3000:]
    assert Run.open(run).digest == Run.open(further).digest
    assert tracked(run) == list(range(1, 9))


def tracked(run: Path) -> list[int]:
    """The steps that the tracker csv has, all with the losses of metrics.jsonl."""
    with (run / "csv/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    noted = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [float(row["grad_norm"]) for row in rows] == [row["grad_norm"] for row in noted]
    return [int(row["step"]) for row in rows]


def _steps(number: int) -> list[object]:
    return ["--train.steps", number, "--train.batch-size", 4]


def test_lerobot_rollout_sends_a_robot_the_actions_of_the_policy(folder, trained):
    done = command("python", "-m", "lerobot_policy_wamkit", trained, folder / "rollout")
    assert not done.returncode, done.stderr
    words = [
        f"--policy.path={folder / 'rollout'}",
        f"--policy.seed={SEED}",
        "--policy.device=cpu",
        "--robot.discover_packages_path=fake_robot",
        "--robot.type=fake",
        f"--robot.out={folder / 'told.json'}",
        "--task=open the drawer",
        "--fps=10",
        "--duration=4",
        "--return_to_initial_position=false",
    ]
    here = {"PYTHONPATH": str(Path(__file__).parent), "HF_LEROBOT_HOME": str(folder / "home")}
    done = command("lerobot-rollout", *words, **here)
    assert not done.returncode, done.stderr[-3000:]
    told = np.array(json.loads((folder / "told.json").read_text()), np.float32)
    assert len(told) > 3
    policy, session = Policy(load(trained)), Session(SEED)
    images, state = IMAGE.transpose(2, 0, 1)[None], np.array(list(STATE.values()), np.float32)
    for action in told:
        expected, session = policy.act(Observation(images, state, "open the drawer"), session)
        np.testing.assert_array_equal(action, expected)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--policy.run=nowhere"], "nowhere"),
        (["--policy.run="], "name the run: --policy.run=runs/NAME"),
        (["--policy.run={data}"], "no checkpoint in"),
        (["--policy.run={run}", '--policy.cameras={{"top": "observation.image"}}'], "the run has no view 'top'"),
        (
            ["--policy.run={run}", "--env.options={{cameras: [corner]}}"],
            "sees by the camera 'corner2', but there",
        ),
        (["--policy.run={run}", "--policy.query=video"], "a policy acts on the query"),
        (["--policy.run={run}", "--env.task=drawer-opn-v3"], "drawer-open-v3"),
    ],
)
def test_what_does_not_fit_is_one_line(data, trained, tmp_path, words, message):
    filled = [word.format(run=trained, data=data) for word in words]
    env = ["--env.type=wamkit", f"--env.run={trained}"]
    more = ["--eval.n_episodes=1", "--eval.batch_size=1", f"--output_dir={tmp_path}", "--policy.device=cpu"]
    done = command("lerobot-eval", "--policy.type=wamkit", *env, *filled, *more)
    said = [line for line in done.stderr.splitlines() if line.startswith("wamkit: ")]
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(said) == 1
    assert re.search(message, said[0]), said


def test_a_missing_package_is_one_line(capsys):
    import lerobot_policy_wamkit

    error = ModuleNotFoundError("No module named 'trackio'", name="trackio")
    lerobot_policy_wamkit._print_error(ModuleNotFoundError, error, None)
    assert capsys.readouterr().err == "wamkit: the package trackio is missing: pip install 'wamkit[trackio]'\n"


def test_a_policy_that_acts_does_not_train(trained):
    from lerobot_policy_wamkit.modeling_wamkit import WamkitPolicy

    policy = WamkitPolicy(config(trained))
    with pytest.raises(WamkitError, match="was loaded to act"):
        policy.forward({"action": torch.zeros(1, 4)})
