"""Ray: jobs as tasks of a cluster, or of one that is started on this machine.

A cluster is trusted as this machine is: Ray moves jobs and results by pickle, so whoever reaches its ports runs code.
A cluster that is started here asks for a secret that only this process and its children know.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from wamkit.errors import WamkitError
from wamkit.executors.base import EXECUTORS
from wamkit.workers import ONE_THREAD, answer, environment

if TYPE_CHECKING:
    from wamkit.runs.run import Run

RETRIES = 2
"""Further attempts at a job whose worker died."""
LATEST = 8
"""Runs whose weights stay in the object store."""
PATIENCE_S = 2.0
"""Seconds in which the port of a cluster must answer."""

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_QUIET = {"log_to_driver": False, "logging_level": "ERROR"}
_SILENT = {"RAY_USAGE_STATS_ENABLED": "0"}
_JOINING = _SILENT | {"RAY_NUM_REDIS_GET_RETRIES": "2"}
"""Environment variables, unless they are set: a cluster that does not answer is asked twice, a second apart."""
_ALONE = _SILENT | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""Those of a cluster of this machine: it takes jobs from this process alone, whoever reaches its ports."""


@EXECUTORS.register("ray")
class Ray:
    """Ray, in the cluster that RAY_ADDRESS names, or in one that is started on this machine for the while.

    A program that has called `ray.init` keeps its connection. Otherwise a cluster is joined at once, and one of this
    machine is started with the first jobs. Raises ModuleNotFoundError without the package ray, and WamkitError for a
    cluster that does not answer, or in which a node has another version of Ray, Python, wamkit, or a package that
    figures depend on.
    """

    def __init__(self) -> None:
        address = os.environ.get("RAY_ADDRESS") or "local"
        if "ray" not in sys.modules:  # it reads these when it is imported
            for name, value in (_ALONE if address == "local" else _JOINING).items():
                os.environ.setdefault(name, value)
        self._ray = importlib.import_module("ray")
        self._started = self._joined = False
        self._folder, self._signal = "", 0
        self._weights: dict[str, Any] = {}
        self._travels: type[Run] | None = None
        try:
            if not self._ray.is_initialized() and address != "local":
                self._join(address)
            if self._ray.is_initialized():
                self._check_nodes()
        except BaseException:
            self.close()
            raise

    def pool(self, worker: Callable[[Any], Any], processes: int, jobs: int) -> Tasks:
        """Tasks of Ray, at most `processes` at a time."""
        from wamkit.runs.run import Run

        if not self._ray.is_initialized():
            self._start(processes)
        elif self._ray.cluster_resources().get("CPU", 0) < 1:
            raise WamkitError("the Ray cluster has no CPU for jobs: add a node, or start it with --num-cpus")
        self._travels = Run
        self._ray.util.register_serializer(Run, serializer=self._travelling, deserializer=_arrived)
        return Tasks(self._ray, worker, processes, {} if self._started else _variables())

    def close(self) -> None:
        """Leaves the cluster, or ends the one that was started here."""
        self._weights.clear()
        if self._travels is not None and self._ray.is_initialized():
            self._ray.util.deregister_serializer(self._travels)
        if self._started or self._joined:
            self._ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._started = self._joined = False
        for number in _SIGNALS:
            if signal.getsignal(number) == self._end:
                signal.signal(number, signal.SIG_DFL)
        if self._signal:
            os.kill(os.getpid(), self._signal)

    def _start(self, processes: int) -> None:
        """Starts a cluster whose workers have the environment and the module path of this process."""
        if os.environ.get("RAY_AUTH_MODE") != "token":
            raise WamkitError(
                "ray was imported before, so that the cluster that starts here would have no secret: set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or connect with ray.init"
            )
        here = ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._started = True
        try:
            with environment(here), self._own_signals():
                found = self._ray.init(address="local", num_cpus=processes, include_dashboard=False, **_QUIET)
        except (OSError, RuntimeError, ValueError) as error:
            raise WamkitError(f"Ray does not start on this machine: {_first_line(error)}") from error
        self._folder = found.address_info["session_dir"]

    def _join(self, address: str) -> None:
        check_answers(address)
        self._joined = True
        try:
            with self._own_signals():
                self._ray.init(address=address, **_QUIET)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise WamkitError(refusal(address, str(error))) from error

    @contextlib.contextmanager
    def _own_signals(self) -> Iterator[None]:
        """Has a signal that ends this process end Ray's first, some of which would outlive it by minutes.

        Ray sets a handler inside, which is taken back. One of the program's own stays.
        """
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, self._end if handler is signal.SIG_DFL else handler)

    def _end(self, number: int, frame: object) -> None:
        self._signal = number
        sys.exit(128 + number)  # to `close`, which repeats the signal: Ray ends with another code on the way

    def _check_nodes(self) -> None:
        """Raises WamkitError for a node with other versions. Nodes that join later are checked with their first job."""
        ray, probe = self._ray, _versions()
        alive = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        on = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        asked = [
            ray.remote(probe).options(num_cpus=0, scheduling_strategy=on(node, soft=False)).remote() for node in alive
        ]
        try:
            found = ray.get(asked, timeout=60)
        except ray.exceptions.RayError as error:
            raise WamkitError(f"a node of the Ray cluster does not answer: {_first_line(error)}") from error
        for name, there in zip(alive.values(), found, strict=True):
            if line := mismatch(probe(), there, f"node {name} of the Ray cluster"):
                raise WamkitError(line)

    def _travelling(self, run: Run) -> dict[str, Any]:
        """The fields of a run whose weights lie in the object store, in place of a folder of this machine.

        They are put there once, and every node has them once, in memory that its workers share.
        """
        from wamkit.runs.carried import carried, packed

        if run.digest not in self._weights:
            for oldest in list(self._weights)[: 1 - LATEST]:
                del self._weights[oldest]
            self._weights[run.digest] = self._ray.put(packed(run))
        there = carried(run, partial(_fetched, self._weights[run.digest]))
        return {f.name: getattr(there, f.name) for f in fields(there)}


class Tasks:
    """The jobs of one call, each a task. A task whose worker dies is tried again, `RETRIES` times."""

    def __init__(self, ray: Any, worker: Callable[[Any], Any], processes: int, variables: Mapping[str, str]):
        options = {"runtime_env": {"env_vars": dict(variables)}} if variables else {}
        self._ray, self._worker, self._processes = ray, worker, processes
        self._task = ray.remote(_run).options(name="job", num_cpus=1, max_retries=RETRIES, **options)
        self._here = _versions()()
        self._sent: dict[Any, int] = {}

    @property
    def full(self) -> bool:
        return len(self._sent) >= self._processes

    def send(self, index: int, job: Any) -> None:
        self._sent[self._task.remote(self._here, self._worker, job)] = index

    def receive(self) -> Iterator[tuple[int, Any, str | None]]:
        done, _ = self._ray.wait(list(self._sent), num_returns=1)
        for sent in done:
            try:  # copied, because what Ray hands out cannot be written to, and keeps its memory
                result, error = copy.deepcopy(self._ray.get(sent))
            except self._ray.exceptions.WorkerCrashedError:
                result, error = None, f"its process ended, in each of {RETRIES + 1} attempts"
            except self._ray.exceptions.RayError as failed:
                result, error = None, f"Ray: {_first_line(failed)}"
            yield self._sent.pop(sent), result, error

    def close(self) -> None:
        for sent in self._sent:
            self._ray.cancel(sent, force=True)
        self._sent.clear()


def _run(expected: Mapping[str, str], worker: Callable[[Any], Any], job: Any) -> tuple[Any, str | None]:
    """The task: the answer to one job, on one thread."""
    import torch

    if line := mismatch(expected, _versions()(), f"node {socket.gethostname()} of the Ray cluster"):
        return None, line
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller ends its jobs in order
    torch.set_num_threads(1)
    return answer(*copy.deepcopy((worker, job)))  # what Ray hands out cannot be written to


def _fetched(weights: Any) -> Any:
    """What lies in the object store, in a worker."""
    return importlib.import_module("ray").get(weights)


def _arrived(found: dict[str, Any]) -> Run:
    """The run of `Ray._travelling`, in a worker."""
    from wamkit.runs.run import Run

    return Run(**found)


def _variables() -> dict[str, str]:
    """Environment variables for workers of a cluster that was started elsewhere."""
    return ONE_THREAD | {name: os.environ[name] for name in ("MUJOCO_GL",) if os.environ.get(name)}


def _versions() -> Callable[[], dict[str, str]]:
    """A function that gives versions by name. Ray sends it as code, so that it runs where there is another wamkit."""

    def versions() -> dict[str, str]:
        import platform
        from importlib import import_module, metadata

        found = {"Python": platform.python_version()}
        for package in ("ray", "torch", "numpy", "mujoco"):
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                found[package] = "none"
        try:
            found["wamkit"] = import_module("wamkit").__version__
        except ImportError:
            found["wamkit"] = "none"
        return found

    return versions


def mismatch(here: Mapping[str, str], there: Mapping[str, str], where: str) -> str:
    """A line that names the versions in which `where` differs from this machine; "" if it does not.

    Examples:
        >>> mismatch({"wamkit": "0.2.0", "ray": "2.60"}, {"wamkit": "0.1.0", "ray": "2.60"}, "the node b")
        'the node b has wamkit 0.1.0, and here is wamkit 0.2.0: install the same versions on both'
    """
    other = [name for name in here if here[name] != there.get(name, "none")]
    if not other:
        return ""
    theirs, ours = (", ".join(f"{name} {at.get(name, 'none')}" for name in other) for at in (there, here))
    return f"{where} has {theirs}, and here is {ours}: install the same versions on both"


def refusal(address: str, message: str) -> str:
    """A line about a cluster that Ray would not join, from Ray's own message of several lines."""
    ray, python = (re.findall(rf"{name}: (\S+)", message) for name in ("Ray", "Python"))
    if len(ray) >= 2 and len(python) >= 2:
        there, here = ({"Ray": ray[i], "Python": python[i]} for i in (0, 1))
        return mismatch(here, there, f"the Ray cluster at RAY_ADDRESS={address}")
    first, *_ = [*message.strip().splitlines(), "it does not answer"]
    return f"no Ray cluster at RAY_ADDRESS={address}: {first}"


def check_answers(address: str) -> None:
    """Raises WamkitError where nothing that speaks Ray's protocol (HTTP/2) answers at HOST:PORT.

    Ray itself would wait for two minutes.
    """
    if address.startswith("ray://"):
        raise WamkitError(
            f"RAY_ADDRESS={address} is for Ray's client; run on a machine of the cluster, RAY_ADDRESS=auto"
        )
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and an empty frame of settings
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.sendall(begin)
            if connection.recv(9)[3:4] != b"\4":
                raise ConnectionError("what answers there is not Ray")
    except (OSError, OverflowError) as error:
        raise WamkitError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}): start one with `ray start --head`, "
            "or unset RAY_ADDRESS to run on this machine"
        ) from error


def _first_line(error: Exception) -> str:
    """The name of an error of Ray's, and the line that says most."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1] if len(lines) > 1 and 'Traceback' in str(error) else lines[0]}"
