"""The page of a data set: it shows the content of the store, and is served to nobody else."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import io
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import CAMERAS, FPS, LAYOUT, SIZE, make_episode, psnr, without_checksums

from wamkit.cli.main import main
from wamkit.config import ConfigError
from wamkit.data.format.metadata_io import save_metadata
from wamkit.data.format.store import Store
from wamkit.data.format.video import encode_video
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.types import Span
from wamkit.viz.dataset_browser import MAX_FRAMES, Server, serve

LENGTHS = (9, MAX_FRAMES + 6, 12)
MEANING = DatasetMetadata(
    "test", "arm", state=(Field("hand", 0, 2, "position", frame="base", unit="m"),),
    cameras={"front": CameraFacts("ego")},
)  # fmt: skip


def fill(root: Path) -> Path:
    store = Store.create(root, **LAYOUT)
    for seed, length in enumerate(LENGTHS):
        spans = (Span(2, 5, "grasp <b>it</b>"), Span(7, 9, "lift it")) if seed == 0 else ()
        store.append(make_episode(seed, length, spans=spans, source=f"video-{seed}" * (seed == 1)))
    store.finalize()
    save_metadata(root, MEANING)
    return root


@contextlib.contextmanager
def served(root: Path) -> Iterator[Server]:
    with serve(Store.open(root), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; `path` is sent as it is."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=120)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()


def tell(server: Server, path: str):
    status, headers, body = ask(server, path)
    assert status == 200 and headers["Content-Type"] == "application/json"
    return json.loads(body)


def frames_of(server: Server, path: str) -> np.ndarray:
    """uint8 (n, 3, H, W)."""
    status, headers, body = ask(server, path)
    assert status == 200, body
    ends = np.cumsum([int(x) for x in headers["X-Lengths"].split(",")])
    assert ends[-1] == len(body)
    parts = [body[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    frames = [next(av.open(io.BytesIO(part), format="mjpeg").decode(video=0)) for part in parts]
    return np.stack([frame.to_ndarray(format="rgb24").transpose(2, 0, 1) for frame in frames])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return fill(tmp_path_factory.mktemp("browse") / "data")


@pytest.fixture(scope="module")
def server(root) -> Iterator[Server]:
    with served(root) as server:
        yield server


def test_the_page_is_whole(server):
    status, headers, body = ask(server, "/")
    page = body.decode()
    assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
    assert ":root { color-scheme" in page and "eval.style.CSS" not in page, "the style of all pages is in it"
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|(src|href)=\"http", page)
    assert ask(server, "/", "HEAD")[2] == b"" and ask(server, "/?x=1")[0] == 200


def test_the_list(server):
    data = tell(server, "/data.json")
    assert (data["name"], data["fps"], data["frames"], data["rewards"]) == ("data", FPS, sum(LENGTHS), True)
    words, rows = data["words"], data["episodes"]
    assert [words[r[0]] for r in rows] == ["task-0", "task-1", "task-0"]
    assert [words[t] for t in rows[0][1]] == ["press the button", "grasp <b>it</b>", "lift it"]
    assert [[words[t] for t in r[1]] for r in rows[1:]] == [["open the drawer"], ["press the button"]]
    assert [r[2:] for r in rows] == [[9, 1, 1, ""], [MAX_FRAMES + 6, 1, 1, "video-1"], [12, 1, 0, ""]]
    front = {"name": "front", "role": "ego", "height": SIZE, "width": SIZE, "batch": MAX_FRAMES}
    assert data["cameras"] == [front, front | {"name": "wrist", "role": ""}]
    charts = [(c["section"], c["title"], c["note"], c["dims"]) for c in data["charts"]]
    assert charts == [
        ("State", "hand", "m, base", [0, 1]),
        ("State", "z", "", [2]),
        ("Actions", "dx", "", [0]),
        ("Actions", "dy", "", [1]),
        ("Other", "next.reward", "", [0]),
        ("Other", "next.success", "", [0]),
    ]


def test_an_episode(server, root):
    episode = tell(server, "/episodes/0.json")
    assert (episode["seed"], episode["noise"]) == (100, 0.0)
    assert episode["runs"] == [
        [0, "press the button"], [2, "grasp <b>it</b>"], [5, "press the button"], [7, "lift it"]
    ]  # fmt: skip
    truth = Store.open(root).episode(0, images=False)
    numbers = {"observation.state": truth.proprio, "action": truth.action, "action.expert": truth.action_expert}
    numbers |= {"next.reward": truth.reward, "next.success": truth.success}
    assert set(episode["values"]) == set(numbers)
    for column, want in numbers.items():
        have = np.frombuffer(base64.b64decode(episode["values"][column]), "<f4")
        assert np.array_equal(have, want.astype(np.float32).ravel()), column


@pytest.mark.parametrize(
    ("episode", "start", "count"), [(0, 0, 9), (1, 0, MAX_FRAMES), (1, MAX_FRAMES, 6), (1, MAX_FRAMES + 5, 1)]
)
def test_frames_are_those_of_the_store(server, root, episode, start, count):
    for camera in CAMERAS:
        seen = frames_of(server, f"/frames/{episode}/{camera}/{start}")
        stored = Store.open(root).decode_steps(episode, camera, range(start, start + count))
        assert seen.shape == stored.shape and min(map(psnr, seen, stored)) > 36
        if count > 1:
            assert max(map(psnr, seen, np.roll(stored, 1, 0))) < 25, "each at its step"


def test_many_at_once(server, root):
    """Threads that ask for parts of the same videos get each their own."""
    stored = Store.open(root).decode(1, "front")
    worst = []

    def look(start: int) -> None:
        worst.append(min(map(psnr, frames_of(server, f"/frames/1/front/{start}"), stored[start : start + MAX_FRAMES])))

    threads = [threading.Thread(target=look, args=(start,)) for start in (60, 5, 40, 0, 25, 66)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == len(threads) and min(worst) > 36


@pytest.mark.parametrize(
    "path",
    [
        "/episodes/3.json",
        "/episodes/-1.json",
        "/episodes/1e0.json",
        f"/episodes/{'9' * 5000}.json",
        "/frames/3/front/0",
        "/frames/0/front/9",
        "/frames/0/front/-1",
        "/frames/0/back/0",
        "/frames/0/..%2F..%2Fmeta%2Finfo.json/0",
        "/frames/0/%ff/0",
        "/frames/../meta/info.json",
        "/../pyproject.toml",
        "/%2e%2e/meta/info.json",
        "/meta/info.json",
        "//etc/passwd",
        "/browse.html",
        "/favicon.ico",
    ],
)
def test_nothing_else_is_served(server, path):
    status, _, body = ask(server, path)
    assert (status, body) == (404, b"there is nothing at this address")


def test_only_those_who_know_its_name_are_answered(server):
    """A page of another site may lead its own name to this address, but cannot change the name that it asks for."""
    port = server.server_address[1]
    for host in ("localhost", f"localhost:{port}", "127.0.0.1:1", "[::1]", "LocalHost"):
        assert ask(server, "/data.json", Host=host)[0] == 200, host
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "[::1",
        "",
    ):
        status, _, body = ask(server, "/data.json", Host=host)
        assert status == 403 and b"press" not in body, host
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        status, headers, _ = ask(server, "/", method)
        assert status == 501 and "Access-Control-Allow-Origin" not in headers


def test_a_damaged_video_says_so_and_the_rest_goes_on(tmp_path):
    store = Store.open(fill(tmp_path / "data"))
    path = store.video_path(1, "front")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    (without_checksums(store.root) / "meta/wamkit.json").write_text("{")
    with served(store.root) as server:
        for _ in range(2):
            status, headers, body = ask(server, "/frames/1/front/0")
            assert status == 500 and headers["Content-Type"].startswith("text/plain")
            assert "episode 1, camera front" in body.decode() and "content has changed" in body.decode()
            assert len(frames_of(server, "/frames/1/wrist/0")) == MAX_FRAMES and len(
                frames_of(server, "/frames/0/front/0")
            )
        data = tell(server, "/data.json")
        assert "its metadata cannot be read" in data["problem"] and data["metadata"] is None
        assert len(tell(server, "/episodes/1.json")["runs"]) == 1


def test_several_episodes_in_one_video(tmp_path):
    """As lerobot writes them: an episode begins within its file, and ends before it does."""
    root, key = without_checksums(fill(tmp_path / "data")), "observation.images.front"
    joined = np.concatenate([make_episode(seed, length).images[:, 0] for seed, length in enumerate(LENGTHS)])
    (root / f"videos/{key}/chunk-000/file-005.mp4").write_bytes(encode_video(joined, FPS))
    rows, start = [], 0
    for path in sorted((root / "meta/episodes/chunk-000").iterdir()):
        rows += pq.read_table(path).to_pylist()
        path.unlink()
    for row, length in zip(rows, LENGTHS, strict=True):
        row |= {f"videos/{key}/file_index": 5, f"videos/{key}/from_timestamp": start / FPS}
        start += length
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    with served(root) as server:
        for episode in (2, 0, 1):
            seen = frames_of(server, f"/frames/{episode}/front/2")
            truth = make_episode(episode, LENGTHS[episode]).images[2 : 2 + MAX_FRAMES, 0]
            assert min(map(psnr, seen, truth)) > 35, episode


def test_success_is_told_where_it_is_known(tmp_path):
    """It is read from its column, which other programs write too; a source that never says it has none."""
    episodes = [make_episode(k, 9, success=np.arange(9) >= 9 - k) for k in range(2)]
    root = tmp_path / "known"
    store = Store.create(root, **LAYOUT)
    for e in episodes:
        store.append(e)
    store.finalize()
    path = without_checksums(root) / "meta/episodes/chunk-000/file-001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop([c for c in table.column_names if c == "wamkit/success"]), path)
    with served(root) as server:
        data = tell(server, "/data.json")
        assert data["rewards"] is True and [r[3] for r in data["episodes"]] == [0, 1]
    silent = Store.create(tmp_path / "silent", **LAYOUT)
    silent.append(make_episode(0, 9, success=np.zeros(9, bool), reward=np.zeros(9, np.float32)))
    with served(tmp_path / "silent") as server:
        assert tell(server, "/data.json")["rewards"] is False


def test_video_alone_numbers_alone_and_nothing(tmp_path):
    one = make_episode(0, 8)
    nothing = {"proprio": np.zeros((8, 0), np.float32), "action": np.zeros((8, 0), np.float32)}
    video = dataclasses.replace(one, **nothing, action_expert=nothing["action"], snapshots=None)
    bare = {**LAYOUT, "proprio_names": (), "action_names": (), "expert": False, "rewards": False}
    Store.create(tmp_path / "video", **bare).append(video)
    with served(tmp_path / "video") as server:
        data = tell(server, "/data.json")
        assert data["charts"] == [] and data["rewards"] is False and data["metadata"] is None
        assert tell(server, "/episodes/0.json")["values"] == {}
        assert len(frames_of(server, "/frames/0/wrist/3")) == 5
    blind = dataclasses.replace(one, cameras=(), images=None, extras={"force": np.ones((8, 7))})
    layout = {**LAYOUT, "cameras": (), "extras": (("force", "float32", 7),)}
    Store.create(tmp_path / "blind", **layout).append(blind)
    with served(tmp_path / "blind") as server:
        data = tell(server, "/data.json")
        assert data["cameras"] == [] and [c["title"] for c in data["charts"][-2:]] == ["force 0 to 3", "force 4 to 6"]
        assert len(base64.b64decode(tell(server, "/episodes/0.json")["values"]["force"])) == 8 * 7 * 4
    Store.create(tmp_path / "empty", **LAYOUT)
    with served(tmp_path / "empty") as server:
        assert tell(server, "/data.json")["episodes"] == [] and ask(server, "/")[0] == 200
        assert ask(server, "/episodes/0.json")[0] == 404


def test_an_address_that_cannot_be_had(root, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["browse", str(root), "--port", str(port), "--no-open-browser"]) == 1
    said = capsys.readouterr().err
    assert f"port {port} of 127.0.0.1" in said and "in use" in said and "--port 0" in said
    with pytest.raises(ConfigError, match="port = 70000: must be between 0 and 65535"):
        serve(Store.open(root), port=70000)
    for host in ("192.0.2.1", "no such host", "a" * 70):
        with pytest.raises(ConfigError, match="name an address of this machine by --host"):
            serve(Store.open(root), host, 0)
    assert main(["browse", str(root / "nowhere")]) == 1 and "no such folder" in capsys.readouterr().err


def test_ctrl_c_ends_it_quietly(root, monkeypatch, capsys):
    """The browser is opened where there is a screen, and finds the page; then the user has seen enough."""
    found = []

    def look(address: str) -> None:
        host, port = re.fullmatch(r"http://(.*):(\d+)/", address).groups()
        with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=120)) as connection:
            connection.request("GET", "/data.json")
            found.append((address, json.loads(connection.getresponse().read())["name"]))
        os.kill(os.getpid(), signal.SIGINT)

    # What is started in the background by a shell ignores Ctrl-C, and so would this.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.open", lambda address: threading.Thread(target=look, args=(address,)).start())
    try:
        assert main(["browse", str(root), "--port", "0"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    ((address, name),) = found
    out, err = capsys.readouterr()
    assert name == "data" and f"3 episodes of {root}: {address}" in out and err == ""
