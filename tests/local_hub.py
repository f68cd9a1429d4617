"""A hub on this machine: as much of the Hugging Face Hub's interface as its own library asks for when a folder is
pushed and fetched. Repositories live in memory, every commit whole."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_this_test"


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, list[dict[str, bytes]]] = {}  # by repository, each with all of its files
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format, *args):
        pass

    def _answer(self, code: int, body: bytes | dict | list = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, one in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), one)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _absent(self, what: str) -> None:
        self._answer(404, {"error": what}, X_Error_Code=what)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            name = name if "/" in name else f"me/{name}"
            if name in self.server.commits:
                return self._answer(409, {"error": "exists", "url": f"{self.server.address}/{name}"})
            self.server.commits[name] = []
            self.server.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
            return self._answer(200, {"url": f"{self.server.address}/{name}", "name": name})
        name = "/".join(path.split("/")[3:5])
        if name not in self.server.commits:
            return self._absent("RepoNotFound")
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return self._answer(
                200, {"files": [{**one, "uploadMode": "regular", "shouldIgnore": False} for one in files]}
            )
        assert "/commit/" in path, path
        files = dict(self.server.commits[name][-1]) if self.server.commits[name] else {}
        for line in map(json.loads, body.splitlines()):
            entry = line["value"]
            if line["key"] == "file":
                files[entry["path"]] = base64.b64decode(entry["content"])
            elif line["key"] == "deletedFile":
                del files[entry["path"]]
        self.server.commits[name].append(files)
        sha = f"{len(self.server.commits[name]):040x}"
        self._answer(
            200, {"commitUrl": f"{self.server.address}/{name}/commit/{sha}", "commitOid": sha, "success": True}
        )

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if path == "/api/whoami-v2":
            return self._answer(200, {"name": "me", "type": "user", "orgs": []})
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[:2])
        if not self.server.commits.get(name) and parts[4:5] != ["tree"]:
            return self._absent("RepoNotFound")
        commits = self.server.commits[name]
        if parts[0] == "api" and parts[4:5] == ["revision"]:
            number = len(commits) if parts[5] == "main" else int(parts[5], 16) if len(parts[5]) == 40 else 0
            if not 1 <= number <= len(commits):
                return self._absent("RevisionNotFound")
            siblings = [{"rfilename": file} for file in sorted(commits[number - 1])]
            return self._answer(200, {"id": name, "sha": f"{number:040x}", "siblings": siblings, "private": False})
        if parts[0] == "api" and parts[4:5] == ["tree"]:
            there = commits[-1] if commits else {}
            return self._answer(200, [_entry(file, data) for file, data in there.items()])
        if parts[0] == "api" and len(parts) == 4:
            return self._answer(200, {"id": name, "sha": f"{len(commits):040x}", "private": False})
        assert parts[2] == "resolve", path
        data = commits[int(parts[3], 16) - 1].get("/".join(parts[4:]))
        if data is None:
            return self._absent("EntryNotFound")
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self._answer(200, data, X_Repo_Commit=parts[3], ETag=etag, Content_Type="application/octet-stream")

    do_HEAD = do_GET


def _entry(file: str, data: bytes) -> dict:
    return {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


@contextmanager
def local_hub() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
