"""Figures of `wamkit serve` on this machine: overhead, many robots, health, malformed messages, kills.

    python -m benchmarks.serving runs/first

The server runs in a process of its own, as robots meet it. Overhead is what a client waits for beyond the model's own
time, beside that of a plain handler that decodes without checks and computes on its event loop, as openpi's does; both
are asked in turn, so that a busy machine slows both. Prints a table in Markdown.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import tyro
import websockets.sync.client as websocket
from wamkit_client import Runner, connect
from wamkit_client.protocol import pack, unpack

from wamkit.inference.model import load
from wamkit.runs.run import Run
from wamkit.serving.inputs import Inputs

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/serving"))
from frames import MALFORMED


@dataclass(frozen=True)
class Args:
    """Choice of the run and of the parts."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    parts: tuple[str, ...] = ("overhead", "robots", "health", "messages", "connections", "kills")
    """Parts to measure."""
    frames: int = 100_000
    """Mutated messages."""
    kills: int = 20
    """Times that the server is killed."""


def main(args: Args) -> None:
    """Measures the parts in order, and prints a row as soon as it is known."""
    print("| what | figure |\n|---|---|", flush=True)
    for part in args.parts:
        for what, figure in PARTS[part](args):
            print(f"| {what} | {figure} |", flush=True)


@contextmanager
def served(run: Path, *options: str, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`wamkit serve` in a process, and its port."""
    command = [sys.executable, "-m", "wamkit", "serve", str(run), "--port", str(port), *options]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ
    ) as process:
        try:
            for line in process.stdout or ():
                if line.startswith("serving at"):
                    yield process, int(line.rpartition(":")[2])
                    return
            raise SystemExit("the server did not start")
        finally:
            process.kill()


def request(run: Path, seed: int = 0, side: int = 224) -> dict[str, Any]:
    """A request that fits the run, with images of random numbers."""
    opened, rng = Run.open(run), np.random.default_rng(seed)
    inputs = Inputs.of(opened)
    mean = opened.statistics["proprio"]["mean"]
    images = {inputs.keys.image(c): rng.integers(0, 256, (side, side, 3), np.uint8) for c in inputs.cameras}
    return {**images, "observation/state": np.array(mean, np.float32), "prompt": "open the drawer"}


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def percentiles(seconds: list[float]) -> str:
    p50, p99 = 1e3 * np.percentile(seconds, [50, 99])
    return f"{p50:.1f} / {p99:.1f} ms"


def overhead(args: Args) -> Iterator[tuple[str, str]]:
    """One client, as fast as it gets answers."""
    found: dict[str, list[float]] = {"wamkit serve": [], "plain handler": []}
    asked = request(args.run)
    with served(args.run) as (_, port), plain(args.run) as other:
        with connect(f"ws://127.0.0.1:{port}") as a, connect(f"ws://127.0.0.1:{other}", timeout=60) as b:
            for k in range(220):
                for name, client in (("wamkit serve", a), ("plain handler", b)):
                    start = time.perf_counter()
                    answer = client.infer(asked)
                    took = time.perf_counter() - start - answer["server_timing"]["infer_ms"] / 1e3
                    if k >= 20:
                        found[name].append(took)
    cameras = sum(k.startswith("observation/images") for k in asked)
    for name, seconds in found.items():
        yield f"{name}: overhead over the model's time, {cameras} images of 224x224, p50 / p99", percentiles(seconds)


def robots(args: Args) -> Iterator[tuple[str, str]]:
    """Eight clients, at 5 Hz and as fast as they get answers."""
    rates = {}
    for batch in ("8", "1"):
        with served(args.run, "--max-batch", batch) as (_, port), ThreadPoolExecutor(8) as pool:
            url = f"ws://127.0.0.1:{port}"
            each = list(pool.map(lambda k, url=url: at_rate(args, url, k, 5.0, 20.0), range(8)))
            waits = [wait for found in each for wait in found]
            yield f"8 clients at 5 Hz for 20 s, --max-batch {batch}, p50 / p99", percentiles(waits)
            counts = list(pool.map(lambda k, url=url: at_rate(args, url, k, 0.0, 10.0), range(8)))
            rates[batch] = sum(map(len, counts)) / 10
    yield "answers a second to 8 clients, batched / alone", f"{rates['8']:.0f} / {rates['1']:.0f}"


def at_rate(args: Args, url: str, seed: int, hz: float, seconds: float) -> list[float]:
    """Seconds that each answer took; hz 0 asks again at once."""
    asked, waits = request(args.run, seed), list[float]()
    with connect(url) as client:
        client.infer(asked)
        begin = time.monotonic() + (seed * 0.025 if hz else 0)
        while time.monotonic() - begin < seconds:
            if hz:
                time.sleep(max(0.0, begin + len(waits) / hz - time.monotonic()))
            start = time.perf_counter()
            client.infer(asked)
            waits.append(time.perf_counter() - start)
    return waits


def health(args: Args) -> Iterator[tuple[str, str]]:
    """GET /healthz while the model computes for seconds: many denoising steps."""
    with served(args.run, "--max-steps", "1000") as (_, port), connect(f"ws://127.0.0.1:{port}") as client:
        one = client.infer(request(args.run) | {"wamkit": {"steps": 20}})["server_timing"]["infer_ms"] / 20
        steps = int(np.clip(3000 / one, 1, 1000))
        waits: list[float] = []
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.infer, request(args.run) | {"wamkit": {"steps": steps}})
            while not answer.done():
                start = time.perf_counter()
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10).read()
                waits.append(time.perf_counter() - start)
                time.sleep(0.02)
            took = answer.result()["server_timing"]["infer_ms"] / 1e3
        yield f"/healthz during an inference of {took:.1f} s, p50 / p99", percentiles(waits)


def messages(args: Args) -> Iterator[tuple[str, str]]:
    """Mutated messages over one socket after the other; every hundredth is followed by a valid request."""
    rng, good = random.Random(0), pack(request(args.run, side=16))
    tree = msgpack.unpackb(good, strict_map_key=False)
    answered = refused = valid = closed = 0
    waits: list[float] = []
    with served(args.run) as (process, port):
        url, memory = f"ws://127.0.0.1:{port}", process.pid
        before = resident(memory)
        client = opened(url)
        for k in range(args.frames):
            data = mutated_tree(tree, rng) if k % 2 else mutated_bytes(good, rng)
            client.send(data)
            answer = client.recv(20)
            answered, refused = answered + isinstance(answer, bytes), refused + isinstance(answer, str)
            assert not isinstance(answer, str) or "\n" not in answer and "Traceback" not in answer
            if k % 100 == 99:
                start = time.perf_counter()
                client.send(good)
                valid += "actions" in unpack(client.recv(20))
                waits.append(time.perf_counter() - start)
            if k % 5000 == 4999:
                client.close()
                closed += 1
                client = opened(url)
        client.close()
        grown = (resident(memory) - before) / 2**20
        alive = process.poll() is None
    yield (
        f"{args.frames:,} mutated messages, half of them changed within their structure",
        f"{refused:,} refused in one line, {answered:,} answered, 0 hangs; {valid} of {len(waits)} valid requests "
        f"between them answered, the slowest in {1e3 * max(waits):.0f} ms; server alive: {alive}, {grown:.0f} MiB more",
    )


def opened(url: str) -> Any:
    client = websocket.connect(url, compression=None, max_size=None)
    client = client.__enter__()
    client.recv(20)
    return client


def mutated_bytes(good: bytes, rng: random.Random) -> bytes:
    """A valid message, or a malformed one, with bytes changed, cut, repeated."""
    data = bytearray(good if rng.random() < 0.7 else rng.choice(list(MALFORMED.values()))[:4096])
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        if (kind := rng.randrange(3)) == 0:
            data[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del data[place : place + rng.randint(1, 64)]
        else:
            data[place:place] = rng.choice(
                (b"\xdd\xff\xff\xff\xff", b"\x81", b"\xc4\x04", b"\x00\xff", bytes(data[:64]))
            )
    return bytes(data)


ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 1.5, float("nan"), float("inf"), "", "x" * 5000, b"", b"\xff" * 8, [], {}, [[]],
    {"a": {}}, ["<f4"], [2**31, 2**31], [-1], [1] * 9, "|O", "|V8", "<M8[s]", b"<c8", "f4,i4",
)  # fmt: skip
"""Values that a field may be given in place of its own."""


def mutated_tree(tree: Any, rng: random.Random) -> bytes:
    """A valid message in which one entry somewhere has another value, another name, or is gone."""
    import copy

    message = copy.deepcopy(tree)
    places: list[dict[Any, Any]] = []

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            places.append(node)
            for value in node.values():
                collect(value)

    collect(message)
    if rng.random() < 0.3:
        message["wamkit"] = {rng.choice(("query", "seed", "steps", "actions", "reset", "x")): rng.choice(ODD)}
        if message["wamkit"].get("steps") == 2**63:
            message["wamkit"] = {}
    for _ in range(rng.randint(1, 2)):
        node = rng.choice(places)
        if not node:
            continue
        key = rng.choice(list(node))
        if (kind := rng.randrange(3)) == 0:
            node[key] = copy.deepcopy(rng.choice(ODD))
        elif kind == 1:
            del node[key]
        else:
            node[rng.choice((b"data", b"dtype", b"shape", "session_id", "endpoint", b"__ndarray__"))] = node.pop(key)
    return msgpack.packb(message)


def connections(args: Args) -> Iterator[tuple[str, str]]:
    """Connections that say nothing, too many of them, and messages that are too large."""
    asked = request(args.run)
    with served(args.run) as (process, port):
        memory = process.pid
        before = resident(memory)
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
        for one in idle:
            one.sendall(b"GET / HTTP/1.1\r\n")
        refused, kept = 0, []
        for _ in range(1000):
            try:
                kept.append(connect(f"ws://127.0.0.1:{port}"))
            except ConnectionError as error:
                refused += "503" in str(error)
        waits = []
        for _ in range(50):
            start = time.perf_counter()
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10).read()
            waits.append(time.perf_counter() - start)
        answered = kept[0].infer(asked)["actions"].shape[0] > 0
        for client in kept:
            client.close()
        yield (
            "10 silent connections, then 1,000 more",
            f"{len(kept)} taken, {refused} refused with 503; /healthz {percentiles(waits)}; "
            f"the first one answered: {answered}",
        )
        for _ in range(20):
            client = opened(f"ws://127.0.0.1:{port}")
            try:
                client.send(bytes(400 * 2**20 // 20))
                client.recv(20)
            except Exception as error:
                code = getattr(getattr(error, "rcvd", None), "code", None)
            client.close()
        grown = (resident(memory) - before) / 2**20
        yield "20 messages of 20 MiB, above the limit of 16", f"closed with code {code}; {grown:.0f} MiB more"


def kills(args: Args) -> Iterator[tuple[str, str]]:
    """The server is killed while a robot acts at 20 Hz, and started again on the same port."""
    asked, held, found = request(args.run), list[int](), list[float]()
    with served(args.run) as (process, port):
        client = connect(f"ws://127.0.0.1:{port}", timeout=10)
        chunk, size = client.metadata["wamkit"]["actions"]["shape"]
    runner = Runner(client, hz=20, stop_after=1e9, first=np.zeros(size))
    infer, answers = client.infer, dict[int, np.ndarray]()

    def noted(observation: dict[str, Any]) -> dict[str, Any]:
        step, answer = runner._asked, infer(observation)
        answers[step] = answer["actions"]
        return answer

    client.infer = noted  # type: ignore[method-assign]
    wrong, last = 0, np.zeros(size)

    def act(steps: int) -> None:
        nonlocal wrong, last
        for _ in range(steps):
            step, action = runner._taken, runner.step(asked)
            planned = [x[step - q] for q, x in list(answers.items()) if 0 <= step - q < len(x)]
            still = np.where(runner.guard.limits.still, 0, last)
            wrong += not any(np.allclose(action, x, atol=1e-6) for x in [*planned, last, still])
            last = action
            time.sleep(0.05)

    for _ in range(args.kills):
        with served(args.run, port=port) as (process, _):
            began, before = time.monotonic(), runner.counts.reconnected
            while runner.counts.reconnected == before:
                act(1)
            found.append(time.monotonic() - began)
            act(20)
            process.send_signal(signal.SIGKILL)
            process.wait()
        stood = runner.counts.held
        act(chunk + 2)  # what was planned runs out, then it stands
        held.append(runner.counts.held - stood)
    runner.close()
    yield (
        f"server killed {args.kills} times while a robot acts at 20 Hz",
        f"connected again {np.median(found):.2f} s (at most {max(found):.2f} s) after it listened; stood still "
        f"within a chunk each time: {min(held) > 0}; actions that no answer had planned for their step: {wrong}",
    )


@contextmanager
def plain(run: Path) -> Iterator[int]:
    """A handler as openpi's, in a process: decoded without checks, computed on the event loop."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving", "--plain", str(run)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield int(process.stdout.readline())  # type: ignore[union-attr]
        finally:
            process.kill()


def serve_plain(run: Path) -> None:
    from websockets.asyncio.server import serve

    model, inputs = load(run), Inputs.of(Run.open(run))

    def array(entries: dict[bytes, Any]) -> Any:
        if b"__ndarray__" in entries:
            return np.ndarray(buffer=entries[b"data"], dtype=entries[b"dtype"], shape=entries[b"shape"])
        return entries

    async def handle(connection: Any) -> None:
        await connection.send(pack({"wamkit": {}}))
        async for message in connection:
            obs = inputs.observation(msgpack.unpackb(message, object_hook=array))
            start = time.monotonic()
            actions = model.sample([obs], "policy", seed=[0]).actions[0]
            took = 1e3 * (time.monotonic() - start)
            await connection.send(pack({"actions": actions, "server_timing": {"infer_ms": took}}))

    async def forever() -> None:
        async with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
            print(next(iter(server.sockets)).getsockname()[1], flush=True)
            await asyncio.get_running_loop().create_future()

    asyncio.run(forever())


PARTS: dict[str, Callable[[Args], Iterator[tuple[str, str]]]] = {
    "overhead": overhead,
    "robots": robots,
    "health": health,
    "messages": messages,
    "connections": connections,
    "kills": kills,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        serve_plain(Path(sys.argv[2]))
    else:
        main(tyro.cli(Args))
