"""A small Hub on 127.0.0.1 that serves local directories to the real client code, and misbehaves when told to.

    with StandInHub() as hub:
        hub.add("gpt2", directory)
        subprocess.run([sys.executable, "-m", "hfkit", ...], env=hub.env(tmp_path))

It speaks what snapshot_download, from_pretrained and load_dataset ask: model and dataset info, file trees, HEAD and
GET of files, ranges, moved names (307) and the error codes of the real Hub. To those who were let in it also speaks
whoami, create_repo and upload_folder without xet. `tests/conftest.py` imports the fixture.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
ALWAYS = 10**9
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".gguf")

ID = r"(?P<name>[^/]+(?:/[^/]+)??)"
API_PATH = re.compile(
    rf"/api/(?P<kind>models|datasets)/{ID}(?:/(?P<verb>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<folder>.+))?)?"
)
UPLOAD_PATH = re.compile(
    rf"/api/models/{ID}/(?P<verb>preupload|commit)/main|/{ID.replace('name', 'lfs')}\.git/info/lfs/objects/batch"
)
FILE_PATH = re.compile(rf"/(?P<kind>datasets/)?{ID}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


class Request(NamedTuple):
    method: str
    path: str
    headers: Message


@dataclass
class Repository:
    """One repository: `directory` is read anew for every request, `broken` counts down."""

    directory: Path
    access: Literal["public", "gated", "private", "own"]
    slow: str
    broken: int
    broken_at: int | None
    status: int
    revisions: tuple[str, ...]

    def files(self) -> dict[str, Path]:
        found = (path for path in sorted(self.directory.rglob("*")) if path.is_file())
        return {path.relative_to(self.directory).as_posix(): path for path in found}

    def commit(self) -> str:
        contents = ((name, file.read_bytes()) for name, file in self.files().items())
        return hashlib.sha1(b"\0".join(name.encode() + b"\0" + data for name, data in contents)).hexdigest()


@dataclass
class Account:
    """Whom a token belongs to, what it allows, and where repositories go that are created with it."""

    name: str
    directory: Path
    role: Literal["read", "write", "fineGrained"]
    rights: tuple[str, ...]
    organizations: tuple[str, ...]


class StandInHub:
    """The server; `url` is its HF_ENDPOINT and `requests` what was asked so far."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.moved: dict[str, str] = {}
        self.accounts: dict[str, Account] = {}  # by Authorization header
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.refuses = ("", 0)  # commits to this repository, counts down
        self.released = threading.Event()  # lets hanging answers go when the server closes
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> StandInHub:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server; afterwards its address refuses connections. Can be called twice."""
        if self.thread.is_alive():
            self.released.set()
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()

    def add(
        self,
        name: str,
        directory: Path,
        *,
        kind: Literal["models", "datasets"] = "models",
        access: Literal["public", "gated", "private", "own"] = "public",
        slow: str = "",
        broken: int = 0,
        broken_at: int | None = None,
        status: int = 200,
        revisions: tuple[str, ...] = ("main",),
        moved_to: str = "",
    ) -> None:
        """Serves `directory` as `name`.

        `access`: gated shows its file list and refuses its files, private is as good as absent,
        own is private and shown to whoever was let in.
        `slow`: requests whose "METHOD path" matches this pattern get no answer ("": none).
        `broken`: so many GETs of a big file stop after `broken_at` bytes of it (None: half; broken=ALWAYS: all).
        `status`: every answer has this status (503, ...). `revisions`: branches and tags, beside the commit.
        `moved_to`: `name` only redirects, as bert-base-uncased does to google-bert/bert-base-uncased.
        """
        if moved_to:
            self.moved[name] = moved_to
        self.repositories[kind, moved_to or name] = Repository(
            Path(directory), access, slow, broken, broken_at, status, revisions
        )

    def let_in(
        self,
        token: str,
        name: str,
        directory: Path,
        *,
        role: Literal["read", "write", "fineGrained"] = "write",
        rights: tuple[str, ...] = (),
        organizations: tuple[str, ...] = (),
    ) -> None:
        """From now on `token` is an access token of `name`, whose new repositories go into `directory`."""
        self.accounts[f"Bearer {token}"] = Account(name, directory, role, rights, organizations)

    def asked(self) -> list[str]:
        """ "METHOD path" of every request so far, without queries."""
        return [f"{request.method} {urlsplit(request.path).path}" for request in self.requests]

    def tokens(self) -> set[str]:
        """Every Authorization header that came in."""
        return {value for request in self.requests if (value := request.headers.get("Authorization"))}

    def env(self, home: Path, **variables: str) -> dict[str, str]:
        """Environment of a subprocess that knows this Hub alone, no token, no proxy, and keeps its cache in `home`."""
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and "proxy" not in name.lower()
        }
        python_path = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home / "hf-home"), "HOME": str(home), "PYTHONPATH": python_path}
        return {**clean, **ours, "HF_HUB_DISABLE_XET": "1", **variables}


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    with StandInHub() as running:
        yield running


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> StandInHub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        body = self.body()
        path = urlsplit(self.path).path
        if path in ("/api/repos/create", "/api/validate-yaml") or UPLOAD_PATH.fullmatch(path):
            self.hub.requests.append(Request(self.command, self.path, self.headers))
            return self.take(path, body)
        form = parse_qs(body.decode()) if not body.startswith(b"{") else json.loads(body)
        self.asked_for = form.get("paths", [])
        return self.answer()

    def do_PUT(self) -> None:
        """The bytes of one LFS object, which need no sign-in, as at the real Hub's storage."""
        self.hub.requests.append(Request(self.command, self.path, self.headers))
        data = self.body()
        assert self.path == f"/lfs/{hashlib.sha256(data).hexdigest()}"
        self.hub.objects[self.path.removeprefix("/lfs/")] = data
        self.reply(200, {})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def take(self, path: str, body: bytes) -> None:
        """Answers what create_repo and upload_folder send."""
        account = self.hub.accounts.get(self.headers.get("Authorization", ""))
        if account is None or account.role == "read":
            return self.refuse(403 if account else 401, "", "You don't have the rights to do this")
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization'] or account.name}/{wanted['name']}"
            known = ("models", name) in self.hub.repositories
            if not known:
                access: Any = "own" if wanted["visibility"] == "private" else "public"
                self.hub.add(name, account.directory / name, access=access)
            return self.reply(409 if known else 200, {"url": f"{self.hub.url}/{name}"})
        place = UPLOAD_PATH.fullmatch(path)
        assert place is not None
        if place["lfs"]:
            answers = [
                {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.reply(200, {"transfer": "basic", "objects": answers})
        if place["verb"] == "preupload":
            names = [one["path"] for one in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(LFS_SUFFIXES) else "regular" for name in names}
            files = [{"path": name, "uploadMode": modes[name], "shouldIgnore": False} for name in names]
            return self.reply(200, {"files": files})
        name, times = self.hub.refuses
        if times and place["name"] == name:
            self.hub.refuses = (name, times - 1)
            return self.refuse(403, "", "Private repository storage limit reached")
        repository = self.hub.repositories["models", place["name"]]
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] in ("file", "lfsFile"):
                is_object = entry["key"] == "lfsFile"
                data = self.hub.objects[value["oid"]] if is_object else base64.b64decode(value["content"])
                file = repository.directory / value["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
        commit = repository.commit()
        url = f"{self.hub.url}/{place['name']}/commit/{commit}"
        return self.reply(200, {"commitUrl": url, "commitOid": commit})

    def answer(self) -> None:
        self.hub.requests.append(Request(self.command, self.path, self.headers))
        path = urlsplit(self.path).path
        if path == "/api/whoami-v2":
            return self.answer_who()
        match = API_PATH.fullmatch(path) or FILE_PATH.fullmatch(path)
        if not match:
            return self.reply(404, {"error": f"the stand-in Hub has no route {path}"})
        place = match.groupdict()
        if new_name := self.hub.moved.get(place["name"]):
            return self.reply(307, {}, Location=self.path.replace(place["name"], new_name, 1))
        kind = "models" if place["kind"] is None else place["kind"].rstrip("/")
        repository = self.hub.repositories.get((kind, place["name"]))
        signed_in = "Authorization" in self.headers
        known = self.headers.get("Authorization") in self.hub.accounts
        if repository is None or repository.access == "private" or (repository.access == "own" and not known):
            # The real Hub's answer to an anonymous request for what does not exist is 401.
            return self.refuse(404 if signed_in else 401, "RepoNotFound", "Repository not found")
        if repository.slow and re.search(repository.slow, f"{self.command} {path}"):
            self.hub.released.wait(60)
            self.close_connection = True
            return None
        if repository.status != 200:
            return self.reply(repository.status, {"error": "as told"})
        commit = repository.commit()
        if unquote(place["revision"] or "main") not in (commit, *repository.revisions):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {place['revision']}")
        if "file" not in place:
            return self.answer_api(repository, place, commit)
        if repository.access == "gated":
            return self.refuse(403 if signed_in else 401, "GatedRepo", f"Access to {place['name']} is restricted")
        file = repository.files().get(unquote(place["file"]))
        if file is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", commit)
        return self.send_file(repository, file, commit)

    def answer_who(self) -> None:
        account = self.hub.accounts.get(self.headers.get("Authorization", ""))
        if account is None:
            return self.refuse(401, "", "Invalid user token.")
        scoped = [{"entity": {"type": "user", "name": account.name}, "permissions": account.rights}]
        token = {"role": account.role, **({"fineGrained": {"scoped": scoped}} if account.rights else {})}
        organizations = [{"type": "org", "name": name} for name in account.organizations]
        return self.reply(200, {"name": account.name, "orgs": organizations, "auth": {"accessToken": token}})

    def answer_api(self, repository: Repository, place: dict[str, str], commit: str) -> None:
        files = repository.files()
        if place["verb"] == "paths-info":
            return self.reply(200, [describe(name, file) for name, file in files.items() if name in self.asked_for])
        if place["verb"] == "tree":
            folder = unquote(place["folder"] or "")
            entries = list_tree(repository, folder, recursive="recursive=true" in self.path.lower())
            if folder and not entries:
                return self.refuse(404, "EntryNotFound", f"{folder} does not exist", commit)
            return self.reply(200, entries)
        siblings = [
            {"rfilename": name, "size": file.stat().st_size, "blobId": etag(file)} for name, file in files.items()
        ]
        gated = repository.access == "gated" and "manual"
        private = repository.access == "own"
        info = {"id": place["name"], "sha": commit, "private": private, "gated": gated, "tags": [], "downloads": 0}
        return self.reply(200, {**info, "siblings": siblings})

    def send_file(self, repository: Repository, file: Path, commit: str) -> None:
        data = file.read_bytes()
        start, status, headers = 0, 200, {"ETag": f'"{etag(file)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(wanted[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        end = len(data)
        if self.command == "GET" and repository.broken and file.name.endswith(LFS_SUFFIXES):
            repository.broken -= 1
            end = len(data) // 2 if repository.broken_at is None else repository.broken_at
            self.close_connection = True
        self.reply(status, data[start:end], length=len(data) - start, **headers)

    def refuse(self, status: int, code: str, message: str, commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.reply(status, {"error": message}, **headers, **({"X-Repo-Commit": commit} if commit else {}))

    def reply(self, status: int, content: Any, *, length: int | None = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/octet-stream" if body is content else "application/json")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Stays silent: the tests read `requests`."""


def list_tree(repository: Repository, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders below `folder`, as the Hub lists them."""
    inside = {name: file for name, file in repository.files().items() if name.startswith(folder and folder + "/")}
    folders = {parent.as_posix() for name in inside for parent in Path(name).parents} - {".", folder}
    entries = [describe(name, file) for name, file in inside.items()]
    entries += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
    return [entry for entry in entries if recursive or Path(entry["path"]).parent == Path(folder)]


def describe(name: str, file: Path) -> dict[str, Any]:
    """One entry of a file tree, big files as Git LFS keeps them."""
    entry: dict[str, Any] = {"type": "file", "path": name, "size": file.stat().st_size, "oid": etag(file)}
    if file.name.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": etag(file), "size": entry["size"], "pointerSize": 134}
    return entry


def etag(file: Path) -> str:
    """sha256 for what the Hub keeps in LFS, git's sha1 for the rest."""
    data = file.read_bytes()
    if file.name.endswith(LFS_SUFFIXES):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
