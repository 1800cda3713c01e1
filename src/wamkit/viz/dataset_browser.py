"""A data set in the browser, on a page of this machine's own: `wamkit browse`.

Pictures are decoded here, by the store, and sent as JPEG: browsers don't play H.264 in 4:4:4, and find an episode in a file of many
only roughly. What is shown at a step is thus what a model is trained on at that step.
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
from wamkit.files import StoreError
from wamkit.metadata import Field
from wamkit.viz.images import jpegs
from wamkit.viz.style import CSS

LINES = 6  # curves in one chart, each a colour of the style
PIXELS = 1 << 20  # of the pictures that are sent at once, about
MOST = 64  # pictures that are sent at once
OPEN = 8  # videos that stay open
HEADERS = {
    "Cache-Control": "no-store",  # the next data set may have the same address
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def browse(root: Path, *, host: str = "127.0.0.1", port: int = 8000, open_browser: bool = True) -> None:
    """Serves the page of the data set `root` until Ctrl-C, and prints its address.

    open_browser: also opens it, where there is a screen. Raises StoreError for what cannot be opened, ConfigError as `serve` does.
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
    """A server of the page of `store`, bound but not yet serving; port 0 takes any that is free.

    Raises ConfigError naming the option where it cannot be bound.
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


# ------------------------------------------------------------------------------------------------------------------ answers


class Answer(NamedTuple):
    """What is sent for a request."""

    status: HTTPStatus
    kind: str
    body: bytes
    headers: dict[str, str] = {}


class Site:
    """All that the page of a store can ask for, by `answer`. Several threads may ask at once.

    /                          the page
    /data.json                 what all episodes have in common, and a row for each
    /episodes/E.json           what was said at each step of episode E, and its numbers: float32, little-endian, base64
    /pictures/E/CAMERA/STEP    JPEGs of the steps from STEP on, one after the other; the header X-Lengths has the bytes of each
    """

    def __init__(self, store: Store):
        self.store = store
        self._meaning, self._problem = None, ""
        try:
            if meaning := load_metadata(store.root):
                meaning.check(len(store.layout.proprio_names), len(store.layout.action_names))
            self._meaning = meaning
        except (StoreError, ConfigError) as error:
            self._problem = str(error)
        self._open: OrderedDict[Path, Video] = OrderedDict()
        self._lock = threading.Lock()  # of `_open`: one decoder works at a time, as the page is one person's

    def answer(self, path: str) -> Answer:
        """The answer to a GET of `path`. Of it only numbers, and names that are compared with the store's, are used."""
        metas = self.store.episodes
        if path == "/":
            page = (
                files("wamkit.viz")
                .joinpath("dataset_browser.html")
                .read_text("utf-8")
                .replace("/* viz.style.CSS */", CSS)
            )
            return Answer(HTTPStatus.OK, "text/html; charset=utf-8", page.encode())
        if path == "/data.json":
            return _json(self.data)
        if (found := re.fullmatch(r"/episodes/([0-9]{1,9})\.json", path)) and int(found[1]) < len(metas):
            return _json(self.episode(int(found[1])))
        if found := re.fullmatch(r"/pictures/([0-9]{1,9})/([^/]+)/([0-9]{1,9})", path):
            number, camera, step = int(found[1]), unquote(found[2]), int(found[3])
            if number < len(metas) and camera in self.store.cameras and step < metas[number].length:
                return self._pictures(number, camera, step)
        return _plain(HTTPStatus.NOT_FOUND, "there is nothing at this address")

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the page shows before an episode is chosen.

        episodes: a row each of [task, texts, length, success, is_demonstration, source]; task and texts (the episode's own, then those of
        its spans) are numbers in `words`.
        """
        store, layout, meaning = self.store, self.store.layout, self._meaning
        words: dict[str, int] = {text: number for number, text in enumerate(dict.fromkeys(store.texts))}
        number = [words[text] for text in store.texts]
        said: list[dict[int, None]] = [{} for _ in store.episodes]
        rows = np.stack([store.numeric()[k] for k in ("episode_index", "task_index")], 1)
        for owner, text in rows[np.diff(rows, axis=0, prepend=-1).any(1)].tolist():
            said[owner].setdefault(number[text])
        episodes = []
        for m in store.episodes:
            task, text = (words.setdefault(x, len(words)) for x in (m.task, m.text))
            texts = list({text: None} | said[m.index])
            episodes.append([task, texts, m.length, int(m.success), int(m.is_demonstration), m.source])
        cameras = []
        for name in store.cameras:
            size = dict(zip(("height", "width"), layout.size(name), strict=True)) | {"batch": self._batch(name)}
            known = meaning.cameras.get(name) if meaning else None
            cameras.append({"name": name, "role": f"{known.role} {known.turned}".strip() if known else ""} | size)
        return {
            "name": store.root.resolve().name,
            "fps": layout.fps,
            "frames": store.frames,
            "robot": layout.robot_type,
            "rewards": layout.rewards,
            "cameras": cameras,
            "charts": list(self._charts()),
            "meaning": asdict(meaning) if meaning else None,
            "problem": self._problem,
            "words": list(words),
            "episodes": episodes,
        }

    def episode(self, number: int) -> dict[str, Any]:
        """What the page shows of one episode, T steps: values, column -> (T, d) numbers, and runs, [first step, text]."""
        store, meta = self.store, self.store.episodes[number]
        here = slice(meta.from_index, meta.from_index + meta.length)
        columns = {chart["column"] for chart in self._charts()} | set(["action.expert"][: store.layout.expert])
        values = {c: base64.b64encode(store.numeric()[c][here].astype("<f4").tobytes()).decode() for c in columns}
        said = store.numeric()["task_index"][here]
        runs = [[int(t), store.texts[said[t]]] for t in np.flatnonzero(np.diff(said, prepend=-1))]
        return {"seed": meta.seed, "noise": meta.noise, "runs": runs, "values": values}

    def _charts(self) -> Iterator[dict[str, Any]]:
        """Which dimensions are drawn together: those of a field, or, where nobody said what they mean, each alone."""
        layout, meaning = self.store.layout, self._meaning
        sizes = {name: math.prod(self.store.numeric()[name].shape[1:]) for name, _, _ in layout.extras}
        parts = (
            ("State", "observation.state", layout.proprio_names, meaning.state if meaning else ()),
            ("Actions", "action", layout.action_names, meaning.action if meaning else ()),
            *(("Other", name, (name,), ()) for name in ("next.reward", "next.success")[: 2 * layout.rewards]),
            *(("Other", n, [str(i) for i in range(d)], (Field(n, 0, d, "other"),)) for n, d in sizes.items()),
        )
        for section, column, names, fields in parts:
            for title, note, dims in _groups(names, fields):
                where = {"section": section, "column": column, "size": len(names), "dims": dims}
                yield {"title": title, "note": note, "names": [names[i] for i in dims]} | where

    def _batch(self, camera: str) -> int:
        return max(1, min(MOST, PIXELS // math.prod(self.store.layout.size(camera))))

    def _pictures(self, number: int, camera: str, step: int) -> Answer:
        size = self._batch(camera)
        steps = range(step, min(self.store.episodes[number].length, step + size))
        try:
            with self._lock:  # a video stays open if no error comes: opening costs as much as decoding several pictures
                path = self.store.video_path(number, camera)
                video = self._open.pop(path, None) or self.store.open_video(number, camera)
                pictures = self.store.decode_from(video, number, camera, steps)
                self._open[path] = video  # the one used last comes last
                while len(self._open) > max(OPEN, len(self.store.cameras)):
                    self._open.popitem(last=False)[1].close()
        except StoreError as error:
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        out = jpegs(pictures, quality=1 if size == MOST else 2)  # the fewer the pixels, the larger they are shown
        return Answer(HTTPStatus.OK, "image/jpeg", b"".join(out), {"X-Lengths": ",".join(str(len(x)) for x in out)})


def _plain(status: HTTPStatus, text: str) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", text.encode(errors="replace"))


def _json(content: Any) -> Answer:
    return Answer(HTTPStatus.OK, "application/json", json.dumps(content, separators=(",", ":")).encode())


def _groups(names: Sequence[str], fields: Sequence[Field]) -> Iterator[tuple[str, str, list[int]]]:
    """(title, note, dimensions) of each chart: fields in even parts of at most LINES dimensions, and what no field has, one by one."""
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


# ------------------------------------------------------------------------------------------------------------------- server


class Server(ThreadingHTTPServer):
    """Answers from a `Site` at one address; a thread each connection. `serve` makes one."""

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int], site: Site):
        self.address_family, self.host, self.site = family, address[0], site
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are written apart: the second would wait for the first's receipt
    timeout = 60

    def do_GET(self) -> None:
        answer = _plain(HTTPStatus.FORBIDDEN, f"this page is only shown as {self.server.url}")
        if self._known_host():
            answer = self.server.site.answer(urlsplit(self.path).path)
        self.send_response(answer.status)
        sizes = {"Content-Type": answer.kind, "Content-Length": str(len(answer.body))}
        for name, value in (HEADERS | sizes | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_GET

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a page that is left or reloaded waits for no answer
            super().handle()

    def _known_host(self) -> bool:
        """Whether the page was asked for by a name of this machine. Else another site's name may have been led here, so that a script
        of that site could read what is served ("DNS rebinding"); a name cannot pose as the address that was connected to."""
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            return False
        reached = self.connection.getsockname()[0]
        return host in {"localhost", "127.0.0.1", "::1", self.server.host.lower(), reached}

    def log_message(self, format: str, *args: Any) -> None:  # house: nothing is logged
        """Says nothing: the terminal is for the address alone."""
