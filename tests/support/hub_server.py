"""A Hugging Face Hub on loopback, as far as its client asks it for models: what it is asked is recorded.

Large files lie on another origin (localhost instead of 127.0.0.1), as on the hub's own CDN.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

TOKEN = "hf_loopback"
LARGE = (".safetensors", ".jpg", ".bin", ".ckpt")


class Asked(NamedTuple):
    """A request of the client."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def line(self) -> str:
        """Method and path, with hashes left out."""
        return f"{self.method} {re.sub(r'[0-9a-f]{40,}', 'HASH', self.path.partition('?')[0])}"


@dataclass
class Repo:
    """A model repository: its files at each commit, the newest last."""

    private: bool = False
    gated: str | bool = False
    card: dict[str, Any] | None = None
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return [*self.commits][-1]

    def commit(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = files
        return oid


class HubServer:
    """The server, its repositories, and what went over the wire.

    Attributes:
        repos: by id.
        objects: large files by SHA-256.
        asked: the requests, in order.
        faults: (pattern of `Asked.line`, status) answered in place of the real answer; status 0 cuts the connection.
        cut_downloads: number of downloads that are cut in the middle.
        xet: answers what the Xet client asks, or None.
        xet_hashes: the hash that Xet knows a file by, by its SHA-256; these files are offered through Xet.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.faults: list[tuple[str, int]] = []
        self.cut_downloads = 0
        self.xet_hashes: dict[str, str] = {}
        self.xet: Callable[[Asked], tuple[int, dict[str, str], bytes] | None] = lambda asked: None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def answer(self) -> None:
                cut = next((p for p, s in hub.faults if s == 0 and re.search(p, f"{self.command} {self.path}")), None)
                if cut and self.command == "PUT":
                    self.rfile.read(1000)
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                body = self._body()
                asked = Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                hub.asked.append(asked)
                hub.answer(self, asked)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            do_GET = do_HEAD = do_POST = do_PUT = answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url, self.cdn = f"http://127.0.0.1:{self.port}", f"http://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def lines(self) -> list[str]:
        return [one.line for one in self.asked]

    # ---- answers

    def answer(self, to: Any, asked: Asked) -> None:
        for pattern, status in self.faults:
            if status and re.search(pattern, asked.line):
                return self._send(to, status, {"error": "as the test wants it"})
        if found := self.xet(asked):
            status, headers, body = found
            return self._send(to, status, body, headers)
        for pattern, respond in self._routes():
            if match := re.fullmatch(pattern, asked.path.partition("?")[0]):
                return respond(to, asked, *match.groups())
        return self._send(to, 404, {"error": f"no route {asked.path}"})

    def _routes(self) -> list[tuple[str, Callable[..., None]]]:
        repo = r"([\w.-]+/[\w.-]+)"
        return [
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", lambda to, asked: self._send(to, 200, {"errors": [], "warnings": []})),
            (rf"/api/models/{repo}(?:/revision/([^/]+))?", self._info),
            (rf"/api/models/{repo}/preupload/main", self._preupload),
            (rf"/{repo}\.git/info/lfs/objects/batch", self._batch),
            (r"/upload/([0-9a-f]{64})", self._upload),
            (r"/verify", lambda to, asked: self._send(to, 200, {})),
            (rf"/api/models/{repo}/commit/main", self._commit),
            (rf"/{repo}/resolve/([^/]+)/(.+)", self._resolve),
            (r"/cdn/([0-9a-f]{64})", self._download),
        ]

    def _send(self, to: Any, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        to.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            to.send_header(name, value)
        to.end_headers()
        if to.command != "HEAD":
            with suppress(BrokenPipeError, ConnectionResetError):
                to.wfile.write(body)

    def _allowed(self, to: Any, asked: Asked, repo: str | None = None) -> bool:
        """Answer as the hub does where the token or the repository is missing; return whether to go on."""
        token = asked.headers.get("authorization") == f"Bearer {TOKEN}"
        there = repo is None or repo in self.repos
        private = repo is not None and there and self.repos[repo].private
        if not token and (repo is None or private or asked.method in ("POST", "PUT") or not there):
            self._send(to, 401, {"error": "Invalid username or password."})
            return False
        if not there:
            self._send(to, 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return there

    def _create(self, to: Any, asked: Asked) -> None:
        if not self._allowed(to, asked):
            return
        wanted = json.loads(asked.body)
        repo = f"{wanted['organization']}/{wanted['name']}"
        if repo in self.repos:
            return self._send(to, 409, {"error": "You already created this model repo"})
        self.repos[repo] = Repo(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self.repos[repo].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._send(to, 200, {"url": f"{self.url}/{repo}"})

    def _info(self, to: Any, asked: Asked, repo: str, revision: str | None) -> None:
        if not self._allowed(to, asked, repo):
            return
        one = self.repos[repo]
        commit = self._revision(one, revision or "main")
        if commit is None:
            return self._send(to, 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        siblings: list[dict[str, Any]] = []
        for name, content in one.commits[commit].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
            if name.endswith(LARGE):
                entry["lfs"] = {"sha256": sha(content), "size": len(content), "pointerSize": 132}
            siblings.append(entry if "blobs=" in asked.path else {"rfilename": name})
        known = {"id": repo, "sha": commit, "private": one.private, "gated": one.gated, "siblings": siblings}
        self._send(to, 200, known | {"cardData": one.card, "tags": [], "downloads": 0})

    @staticmethod
    def _revision(repo: Repo, revision: str) -> str | None:
        return repo.head if revision == "main" else revision if revision in repo.commits else None

    def _preupload(self, to: Any, asked: Asked, repo: str) -> None:
        if not self._allowed(to, asked, repo):
            return
        there = self.repos[repo].commits[self.repos[repo].head]
        files = []
        for one in json.loads(asked.body)["files"]:
            mode = "lfs" if one["path"].endswith(LARGE) else "regular"
            known = there.get(one["path"])
            oid = None if known is None else sha(known) if mode == "lfs" else git_oid(known)
            files.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(to, 200, {"files": files})

    def _batch(self, to: Any, asked: Asked, repo: str) -> None:
        if not self._allowed(to, asked, repo):
            return
        answers = []
        for one in json.loads(asked.body)["objects"]:
            if one["oid"] not in self.objects:
                put, verify = {"href": f"{self.cdn}/upload/{one['oid']}"}, {"href": f"{self.url}/verify"}
                one["actions"] = {"upload": put, "verify": verify}
            answers.append(one)
        self._send(to, 200, {"transfer": "basic", "objects": answers})

    def _upload(self, to: Any, asked: Asked, oid: str) -> None:
        if sha(asked.body) != oid:
            return self._send(to, 400, {"error": "hash"})
        self.objects[oid] = asked.body
        self._send(to, 200, b"")

    def _commit(self, to: Any, asked: Asked, repo: str) -> None:
        if not self._allowed(to, asked, repo):
            return
        one = self.repos[repo]
        lines = [json.loads(line) for line in asked.body.splitlines()]
        parent = lines[0]["value"].get("parentCommit", one.head)
        if parent != one.head:
            return self._send(to, 412, {"error": "A commit has happened since"})
        files = dict(one.commits[one.head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            else:
                del files[value["path"]]
        oid = one.commit(files)
        self._send(to, 200, {"success": True, "commitUrl": f"{self.url}/{repo}/commit/{oid}", "commitOid": oid})

    def _resolve(self, to: Any, asked: Asked, repo: str, revision: str, name: str) -> None:
        if not self._allowed(to, asked, repo):
            return
        one = self.repos[repo]
        commit = self._revision(one, revision)
        content = one.commits[commit].get(name) if commit else None
        if content is None:
            code = "EntryNotFound" if commit else "RevisionNotFound"
            return self._send(to, 404, {"error": code}, {"X-Error-Code": code, "X-Repo-Commit": commit or ""})
        headers = {"X-Repo-Commit": str(commit), "ETag": f'"{git_oid(content)}"'}
        if name.endswith(LARGE):
            self.objects.setdefault(sha(content), content)
            if known := self.xet_hashes.get(sha(content)):
                headers |= {
                    "X-Xet-Hash": known,
                    "X-Xet-Refresh-Route": f"{self.url}/api/models/{repo}/xet-read-token/main",
                }
            linked = {"X-Linked-Etag": f'"{sha(content)}"', "X-Linked-Size": str(len(content))}
            return self._send(to, 302, b"", headers | linked | {"Location": f"{self.cdn}/cdn/{sha(content)}"})
        self._send(to, 200, content, headers)

    def _download(self, to: Any, asked: Asked, oid: str) -> None:
        content, start = self.objects[oid], 0
        if wanted := re.fullmatch(r"bytes=(\d+)-", asked.headers.get("range", "")):
            start = int(wanted[1])
        if self.cut_downloads and asked.method == "GET":
            self.cut_downloads -= 1
            to.send_response(200)
            to.send_header("Content-Length", str(len(content)))
            to.end_headers()
            to.wfile.write(content[: len(content) // 2])
            to.wfile.flush()
            to.connection.shutdown(socket.SHUT_RDWR)
            to.close_connection = True
            return
        span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self._send(to, 206 if start else 200, content[start:], span)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
