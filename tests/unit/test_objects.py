"""Data sets and files in object stores, read by s3fs from a server of this machine."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tests.cases.lerobot_folders import Recordings, write_v3

from conftest import untrained_run
from object_server import ObjectServer
from wamkit.cli.main import main
from wamkit.data.format.hub import data_folder, pinned
from wamkit.data.format.store import Store
from wamkit.data.loading.mixture_config import parse_sources
from wamkit.files import StoreError, WriteError, check_place
from wamkit.hub import objects
from wamkit.hub.names import HubError, ObjectName, named, object_name, object_origin
from wamkit.hub.objects import Unreached, fetched, object_folder
from wamkit.runs.config import home, require_run
from wamkit.runs.exported import export
from wamkit.runs.run import Run

pytest.importorskip("s3fs", reason="the extra cloud is not installed")

URL = "s3://lab/data/arm"
VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_v3(tmp_path_factory.mktemp("made") / "data", Recordings(lengths=(5, 6, 7), height=64))


@pytest.fixture
def server(data, tmp_path, monkeypatch):
    server = ObjectServer()
    content = {f"data/arm/{p.relative_to(data).as_posix()}": p.read_bytes() for p in data.rglob("*") if p.is_file()}
    server.buckets["lab"] = content | {"data/army/x": b"another folder", "runs/a.safetensors": bytes(range(256)) * 8}
    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "WAMKIT_CACHE_DIR": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(objects, "BLOCK", 1000)
    yield server
    server.close()


def refusal(capsys, *words):
    """The one line with which a command ends."""
    assert main(list(words)) == 1
    told = [x for x in capsys.readouterr().err.splitlines() if not x.startswith(("note:", "fetching"))]
    assert len(told) == 1 and told[0].startswith(f"wamkit {words[0]}: "), told
    return told[0]


def test_a_data_set_is_read_as_from_a_folder_and_fetched_once(server, data):
    store, local = Store.open(URL), Store.open(data)
    assert store.episodes == local.episodes
    assert all(np.array_equal(store.numeric()[k], x) for k, x in local.numeric().items())
    assert np.array_equal(store.decode(1, "top"), local.decode(1, "top"))
    sent = server.sent()
    assert {key.removeprefix("data/arm/") for key in sent} == {
        p.relative_to(data).as_posix() for p in data.rglob("*") if p.is_file()
    }
    assert data_folder(URL) == store.root and server.sent() == sent
    assert named(store.root) == pinned(URL) == str(object_origin(store.root)) == URL
    with pytest.raises(StoreError, match=f"{URL} is shared by all that use its cache: copy "):
        store.append(local.episode(0))


def test_some_episodes_alone(server, data):
    store, local = Store.open(f"{URL}:1-3"), Store.open(data)
    assert [m.length for m in store.episodes] == [6, 7] and named(store.root) == f"{URL}:1-3"
    assert np.array_equal(store.decode(0, "top"), local.decode(1, "top"))
    with pytest.raises(HubError, match="holds 3 episodes; 1 to 9 were asked for"):
        Store.open(f"{URL}:1-9")


def test_what_changes_is_fetched_anew_and_what_stays_is_not(server):
    before = Store.open(URL)
    info = json.loads(server.buckets["lab"]["data/arm/meta/info.json"])
    server.buckets["lab"]["data/arm/meta/info.json"] = json.dumps(info | {"robot_type": "other"}).encode()
    server.requests.clear()
    after = Store.open(URL)
    assert (before.layout.robot_type, after.layout.robot_type) == ("so101", "other")
    assert server.sent() == ["data/arm/meta/info.json"] and before.root != after.root
    assert before.decode(0, "top").shape == after.decode(0, "top").shape


def test_a_run_opens_from_its_folder_and_from_its_file(server, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "BLOCK", 1 << 20)
    run = untrained_run(tmp_path / "run", ["drawer-open-v3"], {})
    export(Run.open(run), tmp_path / "b.safetensors")
    for path in (p for p in run.rglob("*") if p.is_file()):
        server.buckets["lab"][f"runs/bc/{path.relative_to(run).as_posix()}"] = path.read_bytes()
    server.buckets["lab"]["runs/b.safetensors"] = (tmp_path / "b.safetensors").read_bytes()
    places = [require_run(Path(f"s3://lab/runs/{name}")) for name in ("bc", "b.safetensors")]
    opened = [Run.open(place) for place in places]
    assert [x.digest for x in opened] == 2 * [Run.open(run).digest]
    assert [home(place) for place in places] == [Path("lab--runs--bc"), Path("lab--runs--b")]


def test_an_interrupted_download_goes_on(server, monkeypatch):
    found = object_folder(object_name(URL))
    size = len(server.buckets["lab"][f"data/arm/{VIDEO}"])
    assert size > 3000
    reads, read = [], type(objects.opened(found.name)).cat_file

    def stops(self, key, start=None, end=None, **more):
        reads.append((start, end))
        if len(reads) == 3:
            raise TimeoutError("the connection was lost")
        return read(self, key, start=start, end=end, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(objects.opened(found.name)), "cat_file", stops)
        with pytest.raises(Unreached, match=f"{URL} cannot be reached .the connection was lost.: check the network"):
            found.fetch([VIDEO])
    server.requests.clear()
    folder = found.fetch([VIDEO])
    assert (folder / VIDEO).read_bytes() == server.buckets["lab"][f"data/arm/{VIDEO}"]
    assert [r for m, k, r in server.requests if m == "GET" and k][0] == "bytes=2000-2999"
    assert not list(found.place.rglob("*.part"))


def test_damage_on_the_way_is_found(server):
    key = f"data/arm/{VIDEO}"
    server.altered[key] = 1
    assert np.array_equal(Store.open(URL).decode(0, "top"), Store.open(URL).decode(0, "top"))
    server.altered["runs/a.safetensors"] = 1
    path = fetched(object_name("s3://lab/runs/a.safetensors"))
    assert path.read_bytes() == server.buckets["lab"]["runs/a.safetensors"] and path.name == "a.safetensors"


def test_damage_every_time_is_refused(server, monkeypatch):
    content = server.buckets["lab"]["runs/a.safetensors"]
    answers = iter([content[:-1] + b"x", content[:-1] + b"y"])
    monkeypatch.setattr(objects, "BLOCK", 1 << 20)
    found = object_folder(object_name("s3://lab/runs/a.safetensors"))
    monkeypatch.setattr(type(objects.opened(found.name)), "cat_file", lambda *_, **__: next(answers))
    with pytest.raises(HubError, match="a.safetensors arrived damaged twice; it was removed, run the same command"):
        found.fetch(found.objects)
    assert not list((found.place / "blobs").iterdir())


def test_etags_that_only_look_like_md5_sums_are_accepted(server):
    server.etags["runs/a.safetensors"] = 32 * "0"
    path = fetched(object_name("s3://lab/runs/a.safetensors"))
    assert path.read_bytes() == server.buckets["lab"]["runs/a.safetensors"]


def test_an_object_that_changes_while_it_is_read_is_refused(server):
    server.etags["runs/a.safetensors"] = "in-parts-2"
    found = object_folder(object_name("s3://lab/runs/a.safetensors"))
    server.etags["runs/a.safetensors"] = "in-parts-3"
    with pytest.raises(HubError, match="a.safetensors changed while it was read: run the same command again"):
        found.fetch(found.objects)


def test_processes_that_want_the_same_take_turns(server):
    found = [object_folder(object_name(URL)) for _ in range(4)]
    threads = [threading.Thread(target=f.fetch, args=(f.objects,)) for f in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one = [key for method, key, bytes_ in server.requests if method == "GET" and bytes_.startswith("bytes=0-")]
    assert len(one) == len(set(one)) == len(found[0].objects)


def test_without_a_connection_it_is_used_as_it_was(server, capsys, monkeypatch):
    Store.open(URL)
    monkeypatch.setattr(objects, "TIMEOUT_S", {"connect": 1, "read": 1})
    server.close()
    assert len(Store.open(URL)) == 3
    assert f"{URL} is used as it was last listed" in capsys.readouterr().err
    with pytest.raises(Unreached, match="s3://lab/runs/a.safetensors was not fetched before, and .* cannot be reached"):
        fetched(object_name("s3://lab/runs/a.safetensors"))


def test_a_store_that_does_not_answer_is_one_line(server, capsys, monkeypatch):
    monkeypatch.setattr(objects, "TIMEOUT_S", {"connect": 0.2, "read": 0.2})
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    server.silent = 1.0
    line = refusal(capsys, "validate", URL)
    assert URL in line and "cannot be reached" in line and "AWS_ENDPOINT_URL" in line


@pytest.mark.parametrize("command", [("validate",), ("train", "--out", "run", "--data")])
def test_refusals_are_one_line_that_says_what_to_do(server, capsys, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    server.denied.add("secret")
    for url, reason in {
        "s3://secret/data": "s3://secret/data may not be read .*: set AWS_PROFILE, or AWS_ACCESS_KEY_ID",
        "s3://none/data": "there is nothing at s3://none/data: check the bucket and the folder",
        "s3://lab/nothing": "there is nothing at s3://lab/nothing: check the bucket and the folder",
        "s3://lab/runs": "s3://lab/runs is no data set .*no meta/info.json.: name the folder that holds meta/",
        "s3://lab/../x": "names no folder of an object store: write s3://BUCKET/FOLDER",
        "s3://lab/data/arm:3-1": "the first episode must be below the last, as in s3:/*lab/data/arm:0-10",
        "nosuch://lab/data": "nosuch://lab/data cannot be read .*: write s3://BUCKET/FOLDER",
    }.items():
        assert re.search(reason, line := refusal(capsys, *command, url)), line


def test_a_service_that_is_down_is_one_line(server, capsys, monkeypatch):
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    server.broken = True
    assert f"{URL} cannot be reached" in refusal(capsys, "validate", URL)


def test_a_package_that_is_missing_is_named(server, capsys, monkeypatch):
    missing = ImportError("Install s3fs to access S3")
    monkeypatch.setattr("fsspec.filesystem", lambda *_, **__: (_ for _ in ()).throw(missing))
    assert refusal(capsys, "validate", URL).endswith("(Install s3fs to access S3): pip install 'wamkit[cloud]'")


@pytest.mark.skipif(
    shutil.which("moto_server") is None, reason="moto's server is not installed: pip install moto[server]"
)
def test_it_reads_from_moto_as_from_a_folder(server, data, monkeypatch, tmp_path):
    import s3fs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with subprocess.Popen(["moto_server", "-p", str(port)], stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.1)
            store = s3fs.S3FileSystem(skip_instance_cache=True)
            store.mkdir("lab")
            store.put(str(data), "lab/data/arm", recursive=True)
            large = np.random.default_rng(0).bytes(12 << 20)
            (tmp_path / "large").write_bytes(large)
            store.put(str(tmp_path / "large"), "lab/large", chunksize=5 << 20)  # in parts, so without an MD5
            monkeypatch.setattr(objects, "BLOCK", 1 << 22)
            found, expected = Store.open(URL), Store.open(data)
            assert found.episodes == expected.episodes
            assert np.array_equal(found.decode(2, "top"), expected.decode(2, "top"))
            assert not object_folder(object_name("s3://lab/large")).objects["large"].has_md5
            assert fetched(object_name("s3://lab/large")).read_bytes() == large
        finally:
            process.terminate()


def test_names():
    assert object_name("s3://lab/a/b:0-10") == ObjectName("s3", "lab/a/b", (0, 10))
    assert str(object_name("gs:/lab/a/")) == "gs://lab/a"  # as a Path has it
    assert object_name("hf://lab/a") is None and object_name("data/a") is None and object_name("C:/data") is None


def test_a_mixture_names_urls(tmp_path):
    (one, two) = parse_sources(("s3://lab/a:0.5", "gs://lab/b:0.5:0-10:video"), tmp_path / "mixture.json")
    assert (one.data, one.weight, one.label) == ("s3://lab/a", 0.5, "a")
    assert (two.data, two.demonstrations, two.actions) == ("gs://lab/b", (0, 10), False)


def test_nothing_is_written_to_a_url():
    with pytest.raises(WriteError, match="s3:/lab/run.*: it is in an object store; name a place of this machine"):
        check_place("s3://lab/run/config.json")
