"""A stand-in for the Hub: the part of its HTTP interface that the real client uses, over repositories in memory.

A request that it does not know is answered with 501 and noted in `unknown`; the fixture `hub` fails the test then.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

WRITE, READ = "hf_writes", "hf_reads"
"""Tokens: one of the owner of everything, one that may read what is public."""
LARGE = (".safetensors", ".parquet", ".mp4", ".npz")
"""Ends of names that the Hub stores as large files, by their SHA-256."""
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass
class Repo:
    """A repository: the files of each commit, and the commit of each branch and tag."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Adds a commit with these files and no others, and returns its hash."""
        content = [[k, hashlib.sha1(v).hexdigest()] for k, v in sorted(files.items())]
        key = hashlib.sha1(json.dumps([len(self.commits), content]).encode()).hexdigest()
        self.commits[key], self.branches[branch] = dict(files), key
        return key

    def resolve(self, revision: str) -> str | None:
        key = self.branches.get(revision) or self.tags.get(revision) or revision
        return key if key in self.commits else None


class Hub:
    """The server. Tests fill `repos` ("model/user/name"), and look into `requests` and `unknown`.

    large: contents of large files by their SHA-256.   listed: names in listings that replace the real ones.
    cut: names of files that are sent in two pieces, the connection broken after the first.
    altered: names of files of which one byte is sent wrong.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.unknown: list[str] = []
        self.cut: set[str] = set()
        self.altered: set[str] = set()
        self.listed: dict[str, str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def sent(self, start: str = "GET") -> list[str]:
        """The names of files of which content was sent."""
        return [
            p.split("/resolve/")[1].split("/", 1)[1] for m, p, _ in self.requests if m == start and "/resolve/" in p
        ]


class _Answer(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _route(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body, parts = self.rfile.read(size), urlsplit(self.path)
        path = parts.path
        self.hub.requests.append((self.command, unquote(path), self.headers.get("Range") or ""))
        self.query = parse_qs(parts.query)
        for method, pattern, answer in _ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                try:
                    answer(self, body, **{k: unquote(v) for k, v in found.groupdict().items() if v is not None})
                except _Answer as refusal:
                    self._refuse(refusal)
                return
        self.hub.unknown.append(f"{self.command} {self.path}")
        self._refuse(_Answer(501, message="the stand-in does not know this request"))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _route

    # -- answers

    def _refuse(self, refusal: _Answer) -> None:
        content = json.dumps({"error": refusal.message}).encode()
        self.send_response(refusal.status)
        if refusal.code:
            self.send_header("X-Error-Code", refusal.code)
        self.send_header("X-Error-Message", refusal.message)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content: object, **headers: str) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    # -- rights

    def _token(self) -> str:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", WRITE, READ):
            raise _Answer(401, message="Invalid credentials in Authorization header")
        return token

    def _repo(self, kind: str, repo: str) -> Repo:
        token = self._token()
        found = self.hub.repos.get(f"{kind.rstrip('s')}/{repo}")
        if found is None or found.private and token != WRITE:
            raise _Answer(404 if token else 401, "RepoNotFound", "Repository not found")
        return found

    def _read(self, kind: str, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        found = self._repo(kind, repo)
        if (commit := found.resolve(revision)) is None:
            raise _Answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, found.commits[commit]

    def _write(self, kind: str, repo: str) -> Repo:
        found = self._repo(kind, repo)
        self._may_write()
        return found

    def _may_write(self) -> None:
        if (token := self._token()) != WRITE:
            raise _Answer(403 if token else 401, message="You don't have the rights to create or write this")

    def _open(self, kind: str, repo: str) -> None:
        if self._repo(kind, repo).gated and self._token() != WRITE:
            raise _Answer(403, "GatedRepo", "Access to this repository is restricted")

    # -- requests

    def harnesses(self, body: bytes) -> None:
        """The client asks for these once a day, to name the program that it runs in."""
        self._json({"standardEnvVars": [], "harnesses": {}})

    def info(self, body: bytes, kind: str, repo: str, revision: str = "main") -> None:
        commit, files = self._read(kind, repo, revision)
        siblings = [{"rfilename": name} for name in files]
        self._json({"_id": "0", "id": repo, "sha": commit, "siblings": siblings, "tags": [], "private": False})

    def refs(self, body: bytes, kind: str, repo: str) -> None:
        found = self._repo(kind, repo)
        listed = {
            where: [{"name": n, "ref": f"refs/{at}/{n}", "targetCommit": key} for n, key in refs.items()]
            for where, at, refs in (("branches", "heads", found.branches), ("tags", "tags", found.tags))
        }
        self._json(listed | {"converts": []})

    def paths(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        _, files = self._read(kind, repo, revision)
        wanted = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
        self._json([self._entry(n, files[n]) for n in wanted if n in files])

    def tree(self, body: bytes, kind: str, repo: str, revision: str, folder: str = "") -> None:
        _, files = self._read(kind, repo, revision)
        inside = [n for n in sorted(files) if not folder or n.startswith(f"{folder}/")]
        if folder and not inside:
            raise _Answer(404, "EntryNotFound", f"{folder} does not exist")
        if self.query.get("recursive", ["False"])[0].lower() != "true":
            inside = [n for n in inside if "/" not in n.removeprefix(f"{folder}/" if folder else "")]
        page, first = 20, int(self.query.get("cursor", ["0"])[0])  # pages are small, so that they are followed
        more = {}
        if first + page < len(inside):
            url = f"{self.hub.url}{urlsplit(self.path).path}?recursive=True&cursor={first + page}"
            more = {"Link": f'<{url}>; rel="next"'}
        self._json([self._entry(n, files[n]) for n in inside[first : first + page]], **more)

    def _entry(self, name: str, content: bytes) -> dict[str, object]:
        entry = {"type": "file", "path": self.hub.listed.get(name, name), "size": len(content), "oid": _git(content)}
        if name.endswith(LARGE):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def file(self, body: bytes, repo: str, revision: str, name: str, kind: str = "model") -> None:
        commit, files = self._read(kind, repo, revision)
        self._open(kind, repo)
        if name not in files:
            raise _Answer(404, "EntryNotFound", f"{name} does not exist")
        content = files[name]
        tag = hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else _git(content)
        first = int(m[1]) if (m := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")) else 0
        self.send_response(206 if first else 200)
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": commit, "Content-Length": str(len(content) - first)}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        for key, value in {**headers, "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if name in self.hub.altered:
            content = bytes([content[0] ^ 1]) + content[1:]
        if name in self.hub.cut and not first:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(2)
            return
        self.wfile.write(content[first:])

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        self._may_write()
        kind, owner = asked.get("type", "model"), asked.get("organization")
        key = f"{kind}/{owner or 'user'}/{asked['name']}"
        if key in self.hub.repos:
            raise _Answer(409, message="You already created this repository")
        repo = self.hub.repos[key] = Repo(private=bool(asked.get("private") or asked.get("visibility") == "private"))
        repo.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self._json({"url": f"{self.hub.url}/{'datasets/' * (kind == 'dataset')}{key.split('/', 1)[1]}"})

    def branch(self, body: bytes, kind: str, repo: str, branch: str) -> None:
        found = self._write(kind, repo)
        if branch in found.branches:
            raise _Answer(409, message="Reference already exists")
        found.branches[branch] = found.branches["main"]
        self._json({})

    def tag(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        found, name = self._write(kind, repo), json.loads(body)["tag"]
        if name in found.tags:
            raise _Answer(409, message="Tag reference exists already")
        found.tags[name] = found.resolve(revision) or ""
        self._json({})

    def untag(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        if self._write(kind, repo).tags.pop(revision, None) is None:
            raise _Answer(404, "RevisionNotFound", "Tag not found")
        self._json({})

    def yaml(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        known = content.startswith("---\n") and "\n---\n" in content
        self._json({"errors": [] if known else [{"message": "no metadata"}], "warnings": []})

    def preupload(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        _, files = self._read(kind, repo, revision)
        self._may_write()
        out = []
        for asked in json.loads(body)["files"]:
            name = asked["path"]
            mode = "lfs" if name.endswith(LARGE) else "regular"
            entry = {"path": name, "uploadMode": mode, "shouldIgnore": False}
            if name in files:
                entry["oid"] = hashlib.sha256(files[name]).hexdigest() if mode == "lfs" else _git(files[name])
            out.append(entry)
        self._json({"files": out})

    def batch(self, body: bytes, repo: str, kind: str = "model") -> None:
        self._write(kind, repo)
        out = []
        for asked in json.loads(body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.large:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/large/{asked['oid']}"}}
            out.append(entry)
        self._json({"objects": out, "transfer": "basic"})

    def put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Answer(400, message="the content has another SHA-256")
        self.hub.large[oid] = body
        self._json({})

    def commit(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        found = self._write(kind, repo)
        if revision not in found.branches:
            raise _Answer(404, "RevisionNotFound", "Invalid rev id")
        files = dict(found.commits[found.branches[revision]])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            elif item["key"] != "header":
                raise _Answer(400, message=f"unknown operation {item['key']}")
        key = found.commit(files, revision)
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{key}", "commitOid": key, "success": True})


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_REPO}"
_FILE = rf"/(?:(?P<kind>dataset)s/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)"
_ROUTES = [
    ("GET", "/api/agent-harnesses", _Handler.harnesses),
    ("GET", _API, _Handler.info),
    ("GET", rf"{_API}/refs", _Handler.refs),
    ("GET", rf"{_API}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", _Handler.paths),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>[^/]+))?", _Handler.tree),
    ("GET", _FILE, _Handler.file),
    ("HEAD", _FILE, _Handler.file),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", rf"{_API}/branch/(?P<branch>[^/]+)", _Handler.branch),
    ("POST", rf"{_API}/tag/(?P<revision>[^/]+)", _Handler.tag),
    ("DELETE", rf"{_API}/tag/(?P<revision>[^/]+)", _Handler.untag),
    ("POST", "/api/validate-yaml", _Handler.yaml),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"/(?:(?P<kind>dataset)s/)?{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/large/(?P<oid>[0-9a-f]{64})", _Handler.put),
    ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", _Handler.commit),
]
