"""Collection and worker processes: the plan, what is recorded, independence of workers and kills, and the errors."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from conftest import untrained_run
from parallel_jobs import square
from wamkit import workers
from wamkit.data.embodiment import SourceData, fit
from wamkit.data.format.store import Store
from wamkit.envs import TRAIN_SEEDS, make_env
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.rollout.collect import (
    CollectConfig,
    NoisyExpert,
    Wanderer,
    Wandering,
    _check_policy,
    _policy,
    collect,
    plan,
    record,
)
from wamkit.runs.run import Run
from wamkit.types import WamkitError
from wamkit.workers import WorkerError, kept_workers, run_parallel

TASKS = ("drawer-open-v3", "button-press-topdown-v3")
SIZE = {"height": 32, "width": 32, "supersample": 1}


def _small(out, **changes):
    usual = {"tasks": TASKS[1:], "out": out, "episodes": 2, "off_expert": 1, "off_expert_steps": 12, "options": SIZE}
    return CollectConfig(**(usual | changes))


def _digest(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


def test_every_prefix_of_the_plan_is_balanced():
    jobs = plan(CollectConfig(tasks=("a", "b", "c"), out=Path("x"), episodes=30, off_expert=4))
    assert [job.index for job in jobs] == list(range(102))
    assert Counter((job.task, job.kind) for job in jobs) == {
        (task, kind): n for task in "abc" for kind, n in (("expert", 30), ("off-expert", 4))
    }
    for end in range(3, 103, 3):
        counts = Counter((job.task, job.kind) for job in jobs[:end])
        assert len({counts[task, "expert"] for task in "abc"}) == 1
        assert abs(counts["a", "off-expert"] - end / 3 * 4 / 34) < 1
    levels = Counter(job.noise for job in jobs if job.kind == "expert")
    assert levels == {0.0: 30, 0.1: 30, 0.3: 30}
    assert [job.from_reset for job in jobs if job.task == "a" and job.kind == "off-expert"] == [
        True,
        False,
        False,
        False,
    ]


def test_perturbed_experts_are_spread_among_the_others():
    config = CollectConfig(tasks=("a", "b"), out=Path("x"), episodes=12, off_expert=4, perturbed_experts=8)
    jobs = plan(config)
    for end in range(2, 49, 2):
        counts = Counter((job.task, job.kind) for job in jobs[:end])
        for kind, n in (("expert", 12), ("off-expert", 4), ("perturbed-expert", 8)):
            assert counts["a", kind] == counts["b", kind] and abs(counts["a", kind] - end / 2 * n / 24) <= 1
    assert Counter(job.noise for job in jobs if job.kind == "expert") == {0.0: 8, 0.1: 8, 0.3: 8}
    assert len({s for job in jobs for s in job.seeds}) == 48 * config.max_attempts


@pytest.mark.parametrize("seed", [0, 1, 987654])
def test_seeds_of_all_attempts_are_distinct_training_seeds(seed):
    jobs = plan(CollectConfig(tasks=tuple("abcdefgh"), out=Path("x"), episodes=200, off_expert=20, seed=seed))
    seeds = [s for job in jobs for s in job.seeds]
    assert len(set(seeds)) == len(seeds) == 8 * 220 * 20
    assert min(seeds) >= 0 and max(seeds) < TRAIN_SEEDS
    with pytest.raises(ValueError, match="more than 1000000 seeds"):
        CollectConfig(tasks=("a",), out=Path("x"), episodes=60_000)


def test_demonstrations_are_labelled_clean_and_off_expert_episodes_are_not_for_imitation(tmp_path):
    config = _small(tmp_path, noise=(0.3,), off_expert=4, snapshots=True)
    jobs = {(job.kind, job.from_reset): job for job in reversed(plan(config))}
    env = make_env("metaworld", task=TASKS[1], **SIZE)
    demo = record(config, jobs["expert", False], env)
    assert demo.is_demonstration and demo.noise == 0.3 and demo.succeeded
    assert int(np.argmax(demo.success)) == len(demo) - 1 - config.steps_after_success
    noise = demo.action - demo.action_expert
    assert 0.1 < np.abs(noise).mean() < 0.3 and np.abs(demo.action).max() <= 1
    env.restore(demo.snapshots[20], render=False)
    np.testing.assert_array_equal(env.expert()(np.random.default_rng(0)), demo.action_expert[20])
    for from_reset in (True, False):
        job = jobs["off-expert", from_reset]
        off = record(config, job, env)
        assert not off.is_demonstration and len(off) == 12 and np.array_equal(off.action, off.action_expert)
        started = off.snapshots[0].attributes.get("curr_path_length", 0)
        assert (started == 0) == from_reset
    job = next(job for job in plan(_small(tmp_path, perturbed_experts=1)) if job.kind == "perturbed-expert")
    miss = record(_small(tmp_path, perturbed_steps=30, perturbed_offset=0.3), job, env)
    assert not miss.is_demonstration and len(miss) == 30
    free = np.abs(miss.action) < 1
    offsets = [set(np.round((miss.action - miss.action_expert)[free[:, k], k], 5)) for k in range(4)]
    assert all(len(o) <= 1 for o in offsets) and sum(map(len, offsets)) > 1, "one offset, throughout"


def test_policies_act_in_turn_and_what_they_do_is_not_for_imitation(tmp_path):
    runs = tuple(untrained_run(tmp_path / n, TASKS, {"max_steps": 20}, seed=i) for i, n in enumerate("ab"))
    config = _small(
        tmp_path / "out", tasks=TASKS, episodes=0, off_expert=1, policies=runs, policy_episodes=2, processes=1
    )
    assert [j.policy for j in plan(config) if j.task == TASKS[0] and j.kind == "policy"] == list(runs)
    store = collect(dataclasses.replace(config, options={"max_steps": 20, **SIZE}), progress=False)
    assert len(store) == 3 * len(TASKS)
    facts = json.loads((tmp_path / "out/collect.json").read_text())
    assert (
        facts["policies"] == [f"{r} @{Run.open(r).digest[:8]}" for r in runs]
        and facts["policies"][0] != facts["policies"][1]
    )
    larger = dataclasses.replace(config, out=tmp_path / "larger", options={"max_steps": 20})
    assert collect(larger, progress=False).layout.image_shape == (3, 64, 64)  # the model resizes them
    with pytest.MonkeyPatch.context() as patch:
        opened = Run.open
        patch.setattr(Run, "open", lambda path: dataclasses.replace(opened(path), image=None))  # as an earlier run's
        with pytest.raises(
            WamkitError, match=r"a cannot act in metaworld: it was trained with height and width = \(32, 32\)"
        ):
            collect(dataclasses.replace(larger, out=tmp_path / "large"), progress=False)
    world = untrained_run(tmp_path / "world", TASKS, {}, "world_model")
    with pytest.raises(WamkitError, match="'world_model' does not model the query 'policy'"):
        collect(dataclasses.replace(config, out=tmp_path / "large", policies=(world,)), progress=False)
    assert not (tmp_path / "large").exists()
    with pytest.raises(WamkitError, match="give both, found 2 policies and 0 episodes"):
        _small(tmp_path, policies=runs)
    with pytest.raises(WamkitError, match="give both"):
        _small(tmp_path, policy_episodes=1)


def test_a_policy_of_a_mixture_may_act_where_its_robot_does(tmp_path):
    """Its own sizes count, not those of the vector and the views that robots share."""
    path = untrained_run(tmp_path / "a", TASKS, {})
    field = (Field("hand", 0, 3, "position"), Field("gripper", 3, 4, "gripper", larger="opens"))
    metadata = DatasetMetadata("a test", "sawyer", state=field, action=field, cameras={"corner2": CameraFacts("scene")})
    rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    robot = fit([SourceData(metadata, rows, rows, np.zeros(20, np.int64), ("corner2",))], ("scene",))[0]
    run = dataclasses.replace(Run.open(path), embodiments={"mine": robot}, origins={})
    run = dataclasses.replace(run, spec=dataclasses.replace(run.spec, cameras=("scene",)))
    provenance = dataclasses.replace(run.provenance, env=dataclasses.replace(run.provenance.env, embodiment="mine"))
    run, env = (
        dataclasses.replace(run, provenance=provenance),
        make_env("metaworld", task=TASKS[0], height=32, width=32),
    )
    _check_policy(run, env, "metaworld")
    wider = dataclasses.replace(robot, views=(1,))
    with pytest.raises(WamkitError, match="trained with cameras = 2, found 1"):
        _policy.cache_clear()
        _check_policy(dataclasses.replace(run, embodiments={"mine": wider}, digest="other"), env, "metaworld")


@pytest.mark.parametrize("changes", [{"processes": 0}, {"noise": (float("nan"),)}, {"episodes": -1}, {"tasks": ()}])
def test_what_cannot_be_collected_is_an_error_of_wamkit(tmp_path, changes):
    with pytest.raises(WamkitError, match=next(iter(changes))):
        _small(tmp_path, **changes)


def test_noise_and_wandering_have_the_moments_they_claim():
    low, high = np.full(4, -2.0, np.float32), np.full(4, 2.0, np.float32)
    actor, rng = NoisyExpert(lambda rng: np.zeros(4, np.float32), 0.1, low, high), np.random.default_rng(0)
    noise = np.stack([actor.act(None, rng)[0].executed for _ in range(4000)])
    assert abs(noise.std() - 0.2) < 0.01 and abs(noise.mean()) < 0.01  # 0.1 half ranges of 2
    walk, session, path = Wanderer(None, low, high), Wandering(rng, np.zeros(4), 0), []
    for _ in range(8000):
        path.append(session.position)
        action, session = walk.act(None, session)
        assert (np.abs(action) <= 2).all()
    path = np.stack(path)
    assert abs(path.std() - 1) < 0.05
    assert abs((path[1:] * path[:-1]).mean() / path.var() - 0.9) < 0.02


def test_content_depends_neither_on_workers_nor_on_kills(tmp_path, monkeypatch):
    collect(_small(tmp_path / "whole", processes=2), progress=False)
    whole = _digest(tmp_path / "whole")
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); import test_collect as t; "
        "from wamkit.rollout.collect import collect\n"
        "if __name__ == '__main__': collect(t._small(Path(sys.argv[1]), processes=1))"
    )
    (tmp_path / "go.py").write_text(script)
    parts, facts = tmp_path / "parts", tmp_path / "parts/meta/episodes"
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    victim = subprocess.Popen([sys.executable, tmp_path / "go.py", parts, Path(__file__).parent], env=here)
    deadline = time.monotonic() + 300
    while not list(facts.rglob("*.parquet")) and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert 1 <= len(Store.open(parts)) < 3
    store = collect(_small(parts, processes=1), progress=False)
    assert _digest(parts) == whole
    times = {p: p.stat().st_mtime_ns for p in parts.rglob("*")}
    monkeypatch.setattr("wamkit.envs.spec.make_env", lambda *_, **__: pytest.fail("nothing is left to record"))
    assert len(collect(_small(parts), progress=False)) == 3
    assert {p: p.stat().st_mtime_ns for p in parts.rglob("*")} == times
    assert [(e.task, e.is_demonstration) for e in store.episodes].count((TASKS[1], False)) == 1
    assert len({e.seed for e in store.episodes}) == 3 and store.frames == sum(e.length for e in store.episodes)
    changed = dataclasses.replace(_small(parts), noise=(0.5,))
    with pytest.raises(WamkitError, match=r"another configuration: noise was \[0.0, 0.1, 0.3\], now \[0.5\]"):
        collect(changed, progress=False)
    for content, message in (("[]", "collect.json is damaged"), ("[" * 200_000, "collect.json cannot be read as JSON")):
        (parts / "collect.json").write_text(content)
        with pytest.raises(WamkitError, match=message):
            collect(_small(parts), progress=False)


def test_unknown_tasks_and_hopeless_experts_are_named(tmp_path):
    with pytest.raises(WamkitError, match="did you mean 'drawer-open-v3'"):
        collect(_small(tmp_path, tasks=("drawer-opn-v3",)))
    with pytest.raises(WamkitError, match="did you mean 'metaworld'"):
        collect(_small(tmp_path, env="metaword"))
    assert not list(tmp_path.iterdir())
    config = _small(tmp_path, options={"max_steps": 5}, max_attempts=2)
    env = make_env("metaworld", task=TASKS[1], max_steps=5)
    with pytest.raises(WamkitError, match="button-press-topdown-v3 failed 2 times in a row with noise 0.0"):
        record(config, plan(config)[0], env)
    env.close()


def test_parallel_results_come_in_order_from_other_processes():
    results = list(run_parallel(range(1, 8), square, processes=2, progress=False))
    assert [value for value, _ in results] == [1, 4, 9, 16, 25, 36, 49]
    assert os.getpid() not in {pid for _, pid in results}


def test_parallel_failures_name_the_job_and_leave_no_children():
    for jobs, message in (
        ((2, -1), "job -1 failed.*ValueError: -1 is negative"),
        ((99,), "job 99 failed.*exit code 7"),
    ):
        with pytest.raises(WorkerError, match=f"(?s){message}"):
            list(run_parallel(jobs, square, processes=1, progress=False, describe=lambda job: f"job {job}"))
    results = run_parallel(range(1, 50), square, processes=1, progress=False)
    _, pid = next(results)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_kept_workers_serve_one_call_after_the_other_and_end():
    """But for those that are busy when their results are no longer wanted, or that have died."""

    def served(*jobs: int) -> set[int]:
        return {pid for _, pid in run_parallel(jobs, square, processes=1, progress=False)}

    with kept_workers():
        first = served(2, 3)
        with kept_workers():
            assert served(4) == first
        assert served(5) == first
        ((_, child),) = workers._waiting
        child.kill()
        child.join()
        second = served(6)
        results = run_parallel(range(7, 50), square, processes=1, progress=False)
        assert {next(results)[1]} == second != first
        results.close()  # while it works on the next
        third = served(8)
    for pid in first | second | third:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_render_in_software_though_nothing_chose_it_before_they_started(tmp_path):
    """As where a collection is continued: nothing was rendered in the process that starts them."""
    code = "from parallel_jobs import opengl; from wamkit.workers import run_parallel\n"
    code += "if __name__ == '__main__': print(*run_parallel([0], opengl, processes=1, progress=False))"
    (tmp_path / "start.py").write_text(code)
    env = {k: v for k, v in os.environ.items() if k != "MUJOCO_GL"} | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, tmp_path / "start.py"], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "mujoco.osmesa\n", done.stderr
