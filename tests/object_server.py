"""A stand-in for S3: the part of its HTTP interface that s3fs reads with, over objects in memory."""

from __future__ import annotations

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

DATE = "2026-01-02T03:04:05.000Z"
PAGE = 4
"""Objects of one answer to a request for a listing."""


class ObjectServer:
    """The server. Tests fill `buckets` (bucket -> key -> content), and look into `requests` (method, key, range).

    denied: buckets that may not be read.   etags: of objects whose etag is no MD5.
    altered: keys of which one byte is sent wrong, and how often.   cut: keys whose next answer ends in the middle.
    silent: answer nothing, for so many seconds.   broken: answer 503.
    """

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.denied: set[str] = set()
        self.etags: dict[str, str] = {}
        self.altered: dict[str, int] = {}
        self.cut: set[str] = set()
        self.silent = 0.0
        self.broken = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # of clients that hang up
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def etag(self, key: str, content: bytes) -> str:
        return self.etags.get(key) or hashlib.md5(content, usedforsecurity=False).hexdigest()

    def sent(self) -> list[str]:
        """The keys of which content was sent, in order."""
        return [key for method, key, _ in self.requests if method == "GET" and key]


class _Handler(BaseHTTPRequestHandler):
    store: ObjectServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        split = urlsplit(self.path)
        bucket, _, key = unquote(split.path).strip("/").partition("/")
        store, options = self.store, {k: v[0] for k, v in parse_qs(split.query, keep_blank_values=True).items()}
        store.requests.append((self.command, key, self.headers.get("Range", "")))
        time.sleep(store.silent)
        if store.broken:
            return self._fault(503, "ServiceUnavailable", "Please reduce your request rate")
        if bucket in store.denied:
            return self._fault(403, "AccessDenied", "Access Denied")
        if bucket not in store.buckets:
            return self._fault(404, "NoSuchBucket", "The specified bucket does not exist")
        if not key:
            return self._list(store.buckets[bucket], options)
        if (content := store.buckets[bucket].get(key)) is None:
            return self._fault(404, "NoSuchKey", "The specified key does not exist.")
        self._object(key, content)

    def _object(self, key: str, content: bytes) -> None:
        store, status, size = self.store, 200, len(content)
        etag, first, last = store.etag(key, content), 0, len(content) - 1
        if asked := self.headers.get("Range", "").removeprefix("bytes="):
            low, _, high = asked.partition("-")
            status, first, last = 206, int(low), min(int(high or last), last)
        part = content[first : last + 1]
        if self.command == "GET" and store.altered.get(key, 0):
            store.altered[key] -= 1
            part = part[:-1] + bytes([part[-1] ^ 1])
        self.send_response(status)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Last-Modified", "Fri, 02 Jan 2026 03:04:05 GMT")
        self.send_header("Content-Length", str(len(part)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if self.command == "GET":
            if key in store.cut:
                part, self.close_connection = part[: len(part) // 2], True
            self.wfile.write(part)

    def _list(self, objects: dict[str, bytes], options: dict[str, str]) -> None:
        keys = sorted(k for k in objects if k.startswith(options.get("prefix", "")))
        if "delimiter" in options and (mark := options["delimiter"]):
            deeper = len(options.get("prefix", ""))
            keys = [k for k in keys if mark not in k[deeper:]]
        start = int(options.get("continuation-token", "0"))
        page, more = keys[start : start + PAGE], start + PAGE < len(keys)
        found = "".join(
            f"<Contents><Key>{escape(k)}</Key><LastModified>{DATE}</LastModified>"
            f'<ETag>"{self.store.etag(k, objects[k])}"</ETag><Size>{len(objects[k])}</Size></Contents>'
            for k in page
        )
        token = f"<NextContinuationToken>{start + PAGE}</NextContinuationToken>" if more else ""
        self._xml(
            200,
            f"<ListBucketResult><KeyCount>{len(page)}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{found}</ListBucketResult>",
        )

    def _fault(self, status: int, code: str, message: str) -> None:
        self._xml(status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>")

    def _xml(self, status: int, body: str) -> None:
        content = b'<?xml version="1.0" encoding="UTF-8"?>' + body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
