"""A hub on 127.0.0.1 that serves one folder as one repository: enough of the protocol for the real client.

It can break a download off, corrupt it, and counts the bytes it has sent of each file.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "somebody/tiny-reranker"
REVISIONS = ("main", "v1", COMMIT)


class StandInHub(ThreadingHTTPServer):
    """`break_off[file]`: how often to stop after half of the file; `corrupt[file]`: how often to flip its last byte."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.break_off: Counter[str] = Counter()
        self.corrupt: Counter[str] = Counter()
        self.bytes_sent: Counter[str] = Counter()
        self.requests = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def digest(self, name: str) -> str:
        return hashlib.sha256((self.folder / name).read_bytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: StandInHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests += 1
        path = self.path.partition("?")[0]
        if match := re.fullmatch(rf"/api/models/{REPOSITORY}/revision/(.+)", path):
            self._model(match[1])
        elif match := re.fullmatch(rf"/{REPOSITORY}/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2])
        else:
            self._error("RepoNotFound")

    def _model(self, revision: str) -> None:
        if revision not in REVISIONS:
            self._error("RevisionNotFound")
            return
        files = []
        for file in sorted(self.server.folder.iterdir()):
            entry: dict[str, object] = {
                "rfilename": file.name,
                "size": file.stat().st_size,
                "blobId": "0" * 40,
            }
            if file.suffix == ".safetensors":
                digest = self.server.digest(file.name)
                entry["lfs"] = {"sha256": digest, "size": entry["size"], "pointerSize": 130}
            files.append(entry)
        body = json.dumps(
            {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": files}
        ).encode()
        self._answer(200, {"Content-Type": "application/json"}, body)

    def _file(self, revision: str, name: str) -> None:
        file = self.server.folder / name
        if revision not in REVISIONS or not file.is_file():
            self._error("EntryNotFound")
            return
        body = file.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{self.server.digest(name)}"', "Accept-Ranges": "bytes"}
        status, whole = 200, len(body)
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or whole - 1), whole - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{whole}"
            status, body = 206, body[first : last + 1]
        self._answer(status, headers, body, name)

    def _error(self, code: str) -> None:
        self._answer(404, {"X-Error-Code": code, "X-Error-Message": "not here"}, b"")

    def _answer(self, status: int, headers: dict[str, str], body: bytes, name: str = "") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if name and self.server.break_off[name] > 0:
            self.server.break_off[name] -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        if name and self.server.corrupt[name] > 0:
            self.server.corrupt[name] -= 1
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.server.bytes_sent[name] += len(body)
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[StandInHub]:
    with StandInHub(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
