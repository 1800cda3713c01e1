"""Server of a page that shows a data set in the browser: `wamkit browse`.

Frames are decoded here, by the store, and sent as JPEG, because browsers do not play H.264 in 4:4:4 and find an episode
in a file of many only roughly. So the frame on the page is the frame that a model is trained on at that step.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import math
import os
import re
import socket
import sys
import threading
import webbrowser
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np

from wamkit.config import ConfigError
from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.format.store import Store
from wamkit.data.format.video import Video
from wamkit.data.labelled import in_words
from wamkit.files import StoreError
from wamkit.metadata import Field
from wamkit.viz.images import jpegs
from wamkit.viz.style import CSS

LINES = 6  # curves in one chart, one for each colour of the style
PIXELS = 1 << 20  # pixels in one response, about
MAX_FRAMES = 64  # frames in one response
OPEN_VIDEOS = 8  # videos that stay open
HEADERS = {
    "Cache-Control": "no-store",  # the next data set may have the same address
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def browse(root: Path, *, host: str = "127.0.0.1", port: int = 8000, open_browser: bool = True) -> None:
    """Serves the page of the data set `root` until Ctrl-C, and prints its address.

    open_browser: also open it, where there is a screen.
    Raises StoreError for a data set that cannot be opened, and ConfigError as `serve` does.
    """
    store = Store.open(root)
    with serve(store, host, port) as server:
        print(f"{len(store)} episodes of {root}: {server.url}\nCtrl-C ends it.", flush=True)
        # Without a screen the system's browser may be one for terminals, which would take over this one.
        if open_browser and (sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()):
            webbrowser.open(server.url)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def serve(store: Store, host: str = "127.0.0.1", port: int = 8000) -> Server:
    """A server of the page of `store`, bound but not yet serving. Port 0 takes any that is free.

    Raises ConfigError with the name of the option if the address cannot be bound.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"port = {port}: must be between 0 and 65535 (--port)")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return Server(family, (host, port), Site(store))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        remedy = "name an address of this machine by --host, as in 127.0.0.1"
        if isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES):
            remedy = "name another port by --port, or take any that is free by --port 0"
        raise ConfigError(f"port {port} of {host}: {reason}; {remedy}") from error


class Response(NamedTuple):
    """The response to a request. kind: its media type."""

    status: HTTPStatus
    kind: str
    body: bytes
    headers: dict[str, str] = {}


class Site:
    """Everything that the page of a store requests. Several threads may call `respond` at once.

    /                        the page
    /data.json               facts of the data set, and a row for each episode
    /episodes/E.json         texts and values of episode E; values are float32, little-endian, base64
    /frames/E/CAMERA/STEP    JPEGs of the steps from STEP on, one after the other; X-Lengths has the bytes of each
    """

    def __init__(self, store: Store):
        self.store = store
        self._metadata, self._problem = None, ""
        try:
            if metadata := load_metadata(store.root):
                metadata.check(len(store.layout.proprio_names), len(store.layout.action_names))
            self._metadata = metadata
        except (StoreError, ConfigError) as error:
            self._problem = str(error)
        self._open: OrderedDict[Path, Video] = OrderedDict()
        self._lock = threading.Lock()  # guards `_open`: one decoder at a time is enough, since the page has one reader

    def respond(self, path: str) -> Response:
        """The response to a GET of `path`. Only numbers in it, and names that the store has, are used."""
        metas = self.store.episodes
        if path == "/":
            template = files("wamkit.viz").joinpath("dataset_browser.html").read_text("utf-8")
            page = template.replace("/* viz.style.CSS */", CSS)
            return Response(HTTPStatus.OK, "text/html; charset=utf-8", page.encode())
        if path == "/data.json":
            return _json(self.data)
        if (found := re.fullmatch(r"/episodes/([0-9]{1,9})\.json", path)) and int(found[1]) < len(metas):
            return _json(self.episode(int(found[1])))
        if found := re.fullmatch(r"/frames/([0-9]{1,9})/([^/]+)/([0-9]{1,9})", path):
            number, camera, step = int(found[1]), unquote(found[2]), int(found[3])
            if number < len(metas) and camera in self.store.cameras and step < metas[number].length:
                return self._frames(number, camera, step)
        return _plain(HTTPStatus.NOT_FOUND, "there is nothing at this address")

    @cached_property
    def data(self) -> dict[str, Any]:
        """The content of the page before an episode is chosen.

        episodes: rows of [task, texts, length, success, is_demonstration, source]. Task and texts (that of the episode,
        then those of its spans) are indices into `words`.
        rewards: false where no step of any episode has a success or a reward: the source does not know them.
        """
        store, layout, metadata = self.store, self.store.layout, self._metadata
        words: dict[str, int] = {text: number for number, text in enumerate(dict.fromkeys(store.texts))}
        number = [words[text] for text in store.texts]
        spoken: list[dict[int, None]] = [{} for _ in store.episodes]
        rows = np.stack([store.numeric()[k] for k in ("episode_index", "task_index")], 1)
        for owner, text in rows[np.diff(rows, axis=0, prepend=-1).any(1)].tolist():
            spoken[owner].setdefault(number[text])
        columns = store.numeric()
        done, reward = (columns.get(k, np.zeros(store.frames)) for k in ("next.success", "next.reward"))
        episodes = []
        for m in store.episodes:
            success = int(done[m.from_index : m.from_index + m.length].any())
            task, text = (words.setdefault(x, len(words)) for x in (m.task, m.text))
            texts = list({text: None} | spoken[m.index])
            episodes.append([task, texts, m.length, success, int(m.is_demonstration), m.source])
        cameras = []
        for name in store.cameras:
            size = dict(zip(("height", "width"), layout.size(name), strict=True)) | {"batch": self._batch(name)}
            known = metadata.cameras.get(name) if metadata else None
            cameras.append({"name": name, "role": f"{known.role} {known.turned}".strip() if known else ""} | size)
        return {
            "name": store.root.resolve().name,
            "fps": layout.fps,
            "frames": store.frames,
            "robot": layout.robot_type,
            "rewards": bool(done.any() or reward.any()),
            "cameras": cameras,
            "charts": list(self._charts()),
            "metadata": asdict(metadata) if metadata else None,
            "labels": in_words(store, metadata.labels) if metadata and metadata.labels else "",
            "problem": self._problem,
            "words": list(words),
            "episodes": episodes,
        }

    def episode(self, number: int) -> dict[str, Any]:
        """The content of one episode of T steps. values: column -> (T, d).   runs: rows of [first step, text]."""
        store, meta = self.store, self.store.episodes[number]
        here = slice(meta.from_index, meta.from_index + meta.length)
        columns = {chart["column"] for chart in self._charts()} | set(["action.expert"][: store.layout.expert])
        values = {c: base64.b64encode(store.numeric()[c][here].astype("<f4").tobytes()).decode() for c in columns}
        texts = store.numeric()["task_index"][here]
        runs = [[int(t), store.texts[texts[t]]] for t in np.flatnonzero(np.diff(texts, prepend=-1))]
        return {"seed": meta.seed, "noise": meta.noise, "runs": runs, "values": values}

    def _charts(self) -> Iterator[dict[str, Any]]:
        """The charts: the dimensions of a field together, or each alone where the data set has no fields."""
        layout, metadata = self.store.layout, self._metadata
        sizes = {name: math.prod(self.store.numeric()[name].shape[1:]) for name, _, _ in layout.extras}
        parts = (
            ("State", "observation.state", layout.proprio_names, metadata.state if metadata else ()),
            ("Actions", "action", layout.action_names, metadata.action if metadata else ()),
            *(("Other", name, (name,), ()) for name in ("next.reward", "next.success")[: 2 * layout.rewards]),
            *(("Other", n, [str(i) for i in range(d)], (Field(n, 0, d, "other"),)) for n, d in sizes.items()),
        )
        for section, column, names, fields in parts:
            for title, note, dims in _groups(names, fields):
                where = {"section": section, "column": column, "size": len(names), "dims": dims}
                yield {"title": title, "note": note, "names": [names[i] for i in dims]} | where

    def _batch(self, camera: str) -> int:
        return max(1, min(MAX_FRAMES, PIXELS // math.prod(self.store.layout.size(camera))))

    def _frames(self, number: int, camera: str, step: int) -> Response:
        size = self._batch(camera)
        steps = range(step, min(self.store.episodes[number].length, step + size))
        try:
            frames = self._decoded(number, camera, steps)
        except StoreError as error:
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        out = jpegs(frames, quality=1 if size == MAX_FRAMES else 2)  # the fewer the pixels, the larger they are shown
        return Response(HTTPStatus.OK, "image/jpeg", b"".join(out), {"X-Lengths": ",".join(str(len(x)) for x in out)})

    def _decoded(self, number: int, camera: str, steps: range) -> np.ndarray:
        if not self.store.shows(number, camera):  # there need not be a video; its images are black
            return self.store.decode_steps(number, camera, steps)
        with self._lock:  # opening a video costs as much as decoding several frames, so it stays open
            path = self.store.video_path(number, camera)
            video = self._open.pop(path, None) or self.store.open_video(number, camera)
            frames = self.store.decode_from(video, number, camera, steps)
            self._open[path] = video  # the one used last comes last
            while len(self._open) > max(OPEN_VIDEOS, len(self.store.cameras)):
                self._open.popitem(last=False)[1].close()
            return frames


def _plain(status: HTTPStatus, text: str) -> Response:
    return Response(status, "text/plain; charset=utf-8", text.encode(errors="replace"))


def _json(content: Any) -> Response:
    return Response(HTTPStatus.OK, "application/json", json.dumps(content, separators=(",", ":")).encode())


def _groups(names: Sequence[str], fields: Sequence[Field]) -> Iterator[tuple[str, str, list[int]]]:
    """(title, note, dimensions) of each chart: fields in even parts of at most LINES dimensions, others one by one."""
    starts = {f.start: f for f in fields}
    at = 0
    while at < len(names):
        f = starts.get(at)
        if f is None:
            yield names[at], "", [at]
            at += 1
            continue
        size = f.stop - f.start
        notes = (f.unit * (f.unit != "1"), f.representation * (f.representation != "absolute"), f.rotation, f.frame)
        for part in np.array_split(np.arange(f.start, f.stop), -(-size // LINES)):
            title = f.name if len(part) == size else f"{f.name} {part[0] - at} to {part[-1] - at}"
            yield title, ", ".join(x for x in notes if x), part.tolist()
        at = f.stop


class Server(ThreadingHTTPServer):
    """Server of a `Site` at one address, with a thread a connection. `serve` makes one."""

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int], site: Site):
        self.address_family, self.host, self.site = family, address[0], site
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        """Address of the page."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are written apart: the second would wait for the first's receipt
    timeout = 60

    def do_GET(self) -> None:
        response = _plain(HTTPStatus.FORBIDDEN, f"this page is only shown as {self.server.url}")
        if self._known_host():
            response = self.server.site.respond(urlsplit(self.path).path)
        self.send_response(response.status)
        sizes = {"Content-Type": response.kind, "Content-Length": str(len(response.body))}
        for name, value in (HEADERS | sizes | response.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_HEAD = do_GET

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a page that is left or reloaded waits for no answer
            super().handle()

    def _known_host(self) -> bool:
        """Tells if the request names this machine.

        Otherwise the name of another site may lead here, so that its script could read the data ("DNS rebinding"). A
        name cannot pose as the address that was connected to.
        """
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            return False
        reached = self.connection.getsockname()[0]
        return host in {"localhost", "127.0.0.1", "::1", self.server.host.lower(), reached}

    def log_message(self, format: str, *args: Any) -> None:  # house: nothing is logged
        """Prints nothing: the terminal shows the address only."""
