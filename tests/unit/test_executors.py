"""The same jobs on processes of this machine and on Ray: equal results in one order, and errors that name the job."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.unit.test_extras import without_extras

from conftest import untrained_run
from parallel_jobs import die_once, hang, loaded, square, thread_counts, write_into
from wamkit import workers
from wamkit.cli.main import main
from wamkit.envs.spec import EnvSpec
from wamkit.eval.evaluate import evaluate
from wamkit.eval.protocols import Protocol
from wamkit.eval.registry import EvalOptions
from wamkit.executors.base import EXECUTORS, executing_on
from wamkit.executors.ray import check_answers, mismatch, refusal
from wamkit.registry import RegistryError
from wamkit.runs.run import Run
from wamkit.types import WamkitError
from wamkit.workers import WorkerError, executed_by, kept_workers, run_parallel

TASK = "drawer-open-v3"
OPTIONS = {"max_steps": 3, "height": 32, "width": 32, "supersample": 1}

takes_long = pytest.mark.skipif(
    not os.environ.get("WAMKIT_LONG_TESTS"), reason="starts Ray's workers many times: set WAMKIT_LONG_TESTS=1"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[workers.Executor]:
    """Ray on this machine, joined as a program does that has called `ray.init` itself."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    path = os.pathsep.join(filter(None, sys.path))
    with workers.environment({"PYTHONPATH": path}):  # see `START` for the other way
        started = ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    executor = EXECUTORS.get("ray")()
    with kept_workers():
        yield executor
    executor.close()
    assert ray.is_initialized(), "the program's own connection stays"
    ray.shutdown()
    shutil.rmtree(started.address_info["session_dir"], ignore_errors=True)


@pytest.fixture
def on_ray(cluster) -> Iterator[None]:
    with executed_by(cluster):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("executors") / "run", [TASK], OPTIONS)


def eventually(holds: Callable[[], bool], seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.1)
    return holds()


def both(cluster, worker, jobs) -> tuple[list, list]:
    """Results of the same jobs on this machine's processes and on Ray."""
    here = list(run_parallel(jobs, worker, processes=2, progress=False))
    with executed_by(cluster):
        return here, list(run_parallel(jobs, worker, processes=2, progress=False))


def test_results_are_equal_and_in_order(cluster):
    here, there = both(cluster, square, range(1, 8))
    assert [value for value, _ in here] == [value for value, _ in there] == [1, 4, 9, 16, 25, 36, 49]
    assert os.getpid() not in {pid for _, pid in there} and not {p for _, p in here} & {p for _, p in there}


def test_workers_compute_on_one_thread(cluster):
    here, there = both(cluster, thread_counts, [0])
    assert here == there == [(1, *"1111")]


def test_arrays_can_be_written_to_in_jobs_and_in_results(cluster):
    """Ray hands out arrays of its shared memory, which cannot be."""
    big = np.zeros(200_000)
    here, there = both(cluster, write_into, [big])
    for (result,) in (here, there):
        result += 1
        assert result.sum() == 200_000 + 7
    assert not big.any()


def test_progress_counts_every_job(on_ray, capsys):
    list(run_parallel(range(2, 5), square, processes=2, desc="evaluate", unit="job"))
    assert "evaluate: 100%" in (err := capsys.readouterr().err) and "3/3" in err


def test_errors_name_the_job(on_ray):
    with pytest.raises(WorkerError, match=r"(?s)^collect: job -1 failed: Traceback.*ValueError: -1 is negative$"):
        list(run_parallel((2, -1), square, desc="collect", progress=False, describe=lambda job: f"job {job}"))


def test_weights_are_put_into_the_store_once_and_need_no_folder(cluster, run, tmp_path):
    runs = [Run.open(run), Run.open(untrained_run(tmp_path / "other", [TASK], OPTIONS, seed=1))]
    here, away = loaded(runs), tmp_path / "away"
    assert here[0] != here[1]

    def asked(times: int) -> list:
        return list(run_parallel([runs] * times, loaded, processes=2, progress=False))

    with executed_by(cluster):
        assert asked(1) == [here]
        run.rename(away)
        try:
            assert asked(2) == [here, here] and len(cluster._weights) == 2
        finally:
            away.rename(run)
    run.rename(away)
    try:
        with pytest.raises(WorkerError, match="is missing"):
            asked(1)
    finally:
        away.rename(run)


def test_an_evaluation_gives_the_same_summary(cluster, run):
    """Everything in it but times, and what is computed from the file that holds them."""

    def summary() -> dict:
        found = evaluate(
            Run.open(run),
            Protocol(EnvSpec("metaworld", (TASK,), OPTIONS), episodes=6),
            EvalOptions(held_out=0, processes=2, report=False),
        )
        kept = [row for row in found["rows"] if row["key"] != "closed_loop.latency.median"]
        assert len(kept) == len(found["rows"]) - 1
        return json.loads(json.dumps({**found, "rows": kept, "files": None}))

    parts = run / "eval/metaworld/parts"
    here = summary()
    played = sorted(path.name for path in (run / "eval/parts").iterdir())
    for path in (run / "eval/parts").iterdir():
        path.unlink()
    with executed_by(cluster):
        assert summary() == here
    assert sorted(path.name for path in (run / "eval/parts").iterdir()) == played and not parts.exists()


@pytest.mark.parametrize("name", ["ry", "Local"])
def test_an_unknown_executor_is_named(name, capsys):
    with pytest.raises(RegistryError, match="unknown executor .*did you mean"), executing_on(name):
        pass
    assert main(["collect", "--tasks", TASK, "--out", "nowhere", "--executor", name]) == 1
    assert "known: local, ray" in capsys.readouterr().err and not Path("nowhere").exists()


def test_versions_that_differ_are_both_named():
    here = {"Python": "3.11.7", "wamkit": "0.2.0", "torch": "2.13.0"}
    assert mismatch(here, dict(here), "node b") == ""
    line = mismatch(here, here | {"wamkit": "0.1.0", "Python": "3.12.1"}, "node b")
    assert line.startswith("node b has Python 3.12.1, wamkit 0.1.0, and here is Python 3.11.7, wamkit 0.2.0: ")
    assert "torch none" in mismatch(here, {k: v for k, v in here.items() if k != "torch"}, "node b")


@pytest.mark.parametrize(("name", "at"), [("Ray", "ray_version"), ("Python", "python_version")])
def test_the_refusal_of_another_version_is_one_line(name, at):
    """From the message that Ray itself raises as it joins such a cluster."""
    utils = pytest.importorskip("ray._private.utils", reason="the extra ray is not installed")
    ray, python, *_ = utils.compute_version_info()
    with pytest.raises(RuntimeError) as error:
        utils.check_version_info({"ray_version": ray, "python_version": python, at: "2.40.0"}, "node 127.0.0.1")
    line, own = refusal("h:1", str(error.value)), {"Ray": ray, "Python": python}[name]
    assert line == (
        f"the Ray cluster at RAY_ADDRESS=h:1 has {name} 2.40.0, and here is {name} {own}: "
        "install the same versions on both"
    )


def test_another_refusal_is_its_first_line():
    assert refusal("h:1", "something else\nat length") == "no Ray cluster at RAY_ADDRESS=h:1: something else"
    assert refusal("h:1", "").endswith("it does not answer")


def test_a_node_of_another_version_is_refused(cluster, monkeypatch):
    monkeypatch.setattr("wamkit.__version__", "9.9.9")
    with pytest.raises(WamkitError, match=r"^node .* has wamkit 0.1.0, and here is wamkit 9.9.9: install"):
        EXECUTORS.get("ray")()
    with executed_by(cluster), pytest.raises(WorkerError, match="here is wamkit 9.9.9"):
        list(run_parallel([1], square, processes=1, progress=False))


def test_a_killed_worker_is_tried_again(on_ray, tmp_path):
    jobs = [(2, tmp_path / "died"), (3, None), (4, None)]
    assert list(run_parallel(jobs, die_once, processes=2, progress=False)) == [4, 9, 16]
    assert (tmp_path / "died").exists()


@takes_long
def test_a_job_that_kills_every_worker_is_named(on_ray):
    with pytest.raises(WorkerError, match="^worker: job 99 failed: its process ended, in each of 3 attempts$"):
        list(run_parallel((99,), square, processes=1, progress=False, describe=lambda job: f"job {job}"))


@takes_long
def test_jobs_that_are_no_longer_wanted_end(on_ray, tmp_path):
    results = run_parallel([None, tmp_path / "pid"], hang, processes=2, progress=False)
    next(results)
    assert eventually((tmp_path / "pid").exists)
    results.close()
    assert eventually(lambda: not Path("/proc", (tmp_path / "pid").read_text()).exists())


@pytest.mark.parametrize("address", ["127.0.0.1:{closed}", "[::1]:{closed}", "127.0.0.1:{other}", "127.0.0.1:99999"])
def test_an_address_where_no_cluster_answers_is_named_at_once(address):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as closing:
        ports = {"other": server.getsockname()[1], "closed": closing.getsockname()[1]}
        closing.close()
        if "other" in address:
            threading.Thread(target=answer_as_something_else, args=(server,), daemon=True).start()
        began = time.monotonic()
        with pytest.raises(WamkitError, match="no Ray cluster answers at RAY_ADDRESS=.*ray start --head"):
            check_answers(address.format(**ports))
    assert time.monotonic() - began < 5


def answer_as_something_else(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_addresses_of_rays_client_are_refused():
    with pytest.raises(WamkitError, match="for Ray's client"):
        check_answers("ray://127.0.0.1:10001")


def test_without_the_package_the_extra_is_named_before_torch_is_imported(run):
    code = """
from wamkit.cli.main import main
print(main(sys.argv[1:]), "torch" in sys.modules)
"""
    done = without_extras(code, "eval", run, "--executor", "ray")
    assert done.stderr == "wamkit eval: the package ray is missing: pip install 'wamkit[ray]'\n"
    assert done.stdout == "1 False\n"


START = """
import sys
from pathlib import Path
from parallel_jobs import hang
from wamkit.executors.base import executing_on
from wamkit.workers import run_parallel
if __name__ == "__main__":
    with executing_on("ray"):
        list(run_parallel([Path(sys.argv[1])], hang, processes=1, progress=False))
"""


@takes_long
def test_a_signal_ends_all_that_was_started_here(tmp_path):
    """Ctrl-C, which reaches all processes of a terminal, and SIGTERM to this one alone."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    (tmp_path / "start.py").write_text(START)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    argv, quiet = [sys.executable, tmp_path / "start.py"], {"env": env, "stderr": subprocess.DEVNULL}
    quiet["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job of a shell ignores it
    sent = {signal.SIGINT: os.killpg, signal.SIGTERM: os.kill}
    started = {n: subprocess.Popen([*argv, tmp_path / f"{n}"], start_new_session=True, **quiet) for n in sent}
    try:
        for number, process in started.items():
            assert eventually((tmp_path / f"{number}").exists, 90) and len(members(process.pid)) > 4
            sent[number](process.pid, number)
        for number, process in started.items():
            assert process.wait(180) == -number
            assert eventually(lambda at=process.pid: not members(at), 30)
    finally:
        for process in started.values():
            process.kill()


def members(session: int) -> list[str]:
    """Processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of, *_ = stat.read_text().rpartition(")")[2].split()
            found += [stat.parent.name] if of == str(session) and state != "Z" else []
    return found
