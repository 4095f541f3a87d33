"""A Hugging Face Hub on 127.0.0.1: what huggingface_hub, transformers and datasets ask of the real one, over real HTTP.

`with LoopbackHub() as hub:` serves from this process; clients run in processes of their own with `hub.env(home)`.
Repositories live in memory. What differs from the real Hub: large files come from this server and not by a redirect, Spaces are
kept but do not run, and there are no pull requests, listings in pages, or Xet.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import mimetypes
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

from tests.hub.card_rules import FRONT_MATTER, REPO_ID, SCHEMAS, SPACE_SDKS, check_card, words

TOKEN, USER, ORGANIZATION = "hf_test", "me", "my-org"
LARGE_FILE = 10_000_000  # bytes; and these, of whatever size, as the Hub's own .gitattributes has it
LARGE_SUFFIXES = words(
    "7z arrow avro bin bmp bz2 ckpt flac ftz gif gz h5 jpeg jpg joblib mlmodel model mp3 msgpack npy npz onnx ot parquet pb"
    " pickle pkl png pt pth rar safetensors tar tflite tgz tiff wasm wav webp xz zip zst"
)
GITATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LARGE_SUFFIXES)
).encode()

# ---- Repositories


class HubError(Exception):
    """An answer of 4xx; `code` is the X-Error-Code that the client's exceptions come from."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status, self.code, self.commit = status, code, commit


@dataclass(frozen=True)
class File:
    """A file of one commit, its bytes elsewhere; `commit` is the one that last changed it."""

    sha256: str
    oid: str  # git's; of a large file, that of the pointer to it
    size: int
    large: bool
    commit: str

    @classmethod
    def of(cls, data: bytes, large: bool, commit: str) -> File:
        sha256 = hashlib.sha256(data).hexdigest()
        git = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        blob = git if large else data
        return cls(sha256, hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest(), len(data), large, commit)

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: Commit | None
    title: str
    description: str
    author: str
    date: str
    files: dict[str, File]

    def json(self) -> dict[str, str]:
        return {"id": self.sha, "title": self.title, "date": self.date}

    def history(self) -> list[Commit]:
        """Newest first."""
        commit: Commit | None = self
        found = []
        while commit:
            found.append(commit)
            commit = commit.parent
        return found


@dataclass
class Repo:
    id: str
    type: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)  # to the commit's sha, as tags
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        return f"/{self.id}" if self.type == "model" else f"/{self.type}s/{self.id}"

    def at(self, revision: str) -> Commit:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def commit(self, branch: str, title: str, author: str, files: dict[str, File], sha: str, text: str = "") -> Commit:
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        parent = self.commits.get(self.branches.get(branch, ""))
        self.commits[sha] = Commit(sha, parent, title, text, author, date, files)
        self.branches[branch] = sha
        return self.commits[sha]


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def _json(data: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(json.dumps(data, default=str).encode(), status, {"Content-Type": "application/json", **headers})


# ---- The server

Failure = int | float | str | None  # a status of 100 and more, seconds to wait, "drop" or "truncate"


class LoopbackHub:
    """The server; a context manager. `fail(method, path)` is asked before every request, `requests` logs them all."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}  # by type and id
        self.blobs: dict[str, bytes] = {}  # by SHA-256
        self.tokens = {TOKEN: USER}
        self.fail: Callable[[str, str], Failure] | None = None
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self._count = 0
        self.server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def env(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """The environment of a client: this hub, an own cache, and nothing that reaches beyond 127.0.0.1."""
        foreign = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        no_proxy = ",".join(filter(None, [env.get("NO_PROXY", env.get("no_proxy")), "127.0.0.1,localhost"]))
        env |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": no_proxy, "no_proxy": no_proxy}
        env |= {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "DISABLE_SAFETENSORS_CONVERSION": "1"}  # S3, and a Space
        return env | ({"HF_TOKEN": token} if token else {})

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        return self.repos[repo_type, repo_id]

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        commit = self.repo(repo_id, repo_type).at(revision)
        return {path: self.blobs[file.sha256] for path, file in commit.files.items()}

    def commits(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> list[str]:
        """Titles, newest first."""
        return [commit.title for commit in self.repo(repo_id, repo_type).at(revision).history()]

    def new_sha(self) -> str:
        self._count += 1
        return hashlib.sha1(f"{self.url} {time.time()} {self._count}".encode()).hexdigest()

    def store(self, data: bytes, large: bool, commit: str) -> File:
        file = File.of(data, large, commit)
        self.blobs[file.sha256] = data
        return file

    # -- What a request may do

    def route(
        self, method: str, segments: list[str], query: dict[str, list[str]], body: bytes, user: str | None
    ) -> Answer:
        match [method, *segments]:
            case ["GET", "api", "whoami-v2"]:
                if not user:
                    raise HubError(401, "Invalid username or password.")
                organizations = [{"type": "org", "name": ORGANIZATION, "roleInOrg": "admin"}]
                access = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
                return _json({"type": "user", "id": user, "name": user, "orgs": organizations, "auth": access})
            case ["POST", "api", "validate-yaml"]:
                request = json.loads(body)
                return self.validate(request["content"], request.get("repoType") or "model")
            case ["POST", "api", "repos", "create"] | ["DELETE", "api", "repos", "delete"]:
                return self.create_or_delete(method, json.loads(body), user)
            case ["GET", "api", ("models" | "datasets") as kind]:
                wanted = {key: query.get(key, [""])[0].lower() for key in ("author", "search")}
                found = [repo for repo in self.repos.values() if f"{repo.type}s" == kind and self.may_read(repo, user)]
                found = [repo for repo in found if wanted["search"] in repo.id.lower()]
                found = [repo for repo in found if wanted["author"] in ("", repo.id.split("/")[0])]
                return _json([self.info(repo, repo.at("main"), {}) for repo in found])
            case [_, "api", ("models" | "datasets" | "spaces") as kind, owner, name, *rest]:
                repo = self.find(kind[:-1], f"{owner}/{name}", user)
                return self.api(method, repo, rest, query, body, user)
            case ["POST", *path, _, "info", "lfs", "objects", "batch"] if segments[-5].endswith(".git"):
                repo_type = path[0][:-1] if path[0] in ("datasets", "spaces") else "model"
                self.check_write(self.find(repo_type, f"{path[-1]}/{segments[-5].removesuffix('.git')}", user), user)
                return self.lfs_batch(json.loads(body)["objects"])
            case ["PUT", "_lfs", oid]:  # signed links need no token
                if hashlib.sha256(body).hexdigest() != oid:
                    raise HubError(400, f"the content's SHA-256 is not {oid}")
                self.blobs[oid] = body
                return Answer()
            case ["POST", "_lfs", "verify"]:
                request = json.loads(body)
                stored = self.blobs.get(request["oid"])
                if stored is None or len(stored) != request["size"]:
                    raise HubError(404, f"object {request['oid']} is not there, or not of size {request['size']}")
                return Answer()
            case ["GET" | "HEAD", ("datasets" | "spaces") as kind, owner, name, "resolve", revision, *path] if path:
                return self.resolve(self.find(kind[:-1], f"{owner}/{name}", user), revision, "/".join(path))
            case ["GET" | "HEAD", owner, name, "resolve", revision, *path] if path:
                return self.resolve(self.find("model", f"{owner}/{name}", user), revision, "/".join(path))
            case ["GET" | "HEAD", ("datasets" | "spaces") as kind, owner, name]:
                return self.page(self.find(kind[:-1], f"{owner}/{name}", user))
            case ["GET" | "HEAD", owner, name] if owner != "api":
                return self.page(self.find("model", f"{owner}/{name}", user))
            case [_, "api", "models" | "datasets", _, *_] | ["GET" | "HEAD", _, "resolve", *_]:  # no owner, as `gpt2`
                raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        raise HubError(404, f"The loopback hub does not know {method} /{'/'.join(segments)}")

    def may_read(self, repo: Repo, user: str | None) -> bool:
        return not repo.private or (user is not None and repo.id.split("/")[0] in (user, ORGANIZATION))

    def find(self, repo_type: str, repo_id: str, user: str | None) -> Repo:
        """The Hub hides what a stranger may not see: a missing repository and a private one give the same answer."""
        repo = self.repos.get((repo_type, repo_id))
        if repo is None or not self.may_read(repo, user):
            message = "Repository not found" if user else "Invalid username or password."
            raise HubError(404 if user else 401, message, "RepoNotFound")
        return repo

    def check_write(self, repo: Repo, user: str | None) -> None:
        if user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        if repo.id.split("/")[0] not in (user, ORGANIZATION):
            raise HubError(403, f"You don't have the rights to write to {repo.id}")

    def validate(self, content: str, repo_type: str) -> Answer:
        errors, warnings = check_card(content, repo_type)
        found = {"errors": errors, "warnings": warnings}
        messages = {kind: [{"message": text} for text in texts] for kind, texts in found.items()}
        return _json(messages, 400 if errors else 200)

    def create_or_delete(self, method: str, request: dict[str, Any], user: str | None) -> Answer:
        if user is None:
            raise HubError(401, "Invalid username or password.")
        repo_type, owner = request.get("type") or "model", request.get("organization") or user
        repo_id = f"{owner}/{request['name']}"
        if owner not in (user, ORGANIZATION):
            raise HubError(403, f"You don't have the rights to create or delete a {repo_type} of {owner!r}")
        if repo_type not in SCHEMAS or not REPO_ID.fullmatch(repo_id):
            raise HubError(400, f"Invalid repository: {repo_type} {repo_id}")
        if repo_type == "space" and method == "POST" and request.get("sdk") not in SPACE_SDKS:
            raise HubError(400, f"A Space needs an sdk of {sorted(SPACE_SDKS)}, not {request.get('sdk')!r}")
        if method == "DELETE":
            self.find(repo_type, repo_id, user)
            del self.repos[repo_type, repo_id]
            return _json({})
        repo = Repo(repo_id, repo_type, request.get("visibility") == "private" or bool(request.get("private")))
        where = {"url": self.url + repo.prefix, "name": repo_id}
        if (repo_type, repo_id) in self.repos:
            return _json({"error": f"You already created this {repo_type} repo", **where}, 409)
        sha = self.new_sha()
        repo.commit("main", "initial commit", user, {".gitattributes": self.store(GITATTRIBUTES, False, sha)}, sha)
        self.repos[repo_type, repo_id] = repo
        return _json(where)

    def api(
        self, method: str, repo: Repo, rest: list[str], query: dict[str, list[str]], body: bytes, user: str | None
    ) -> Answer:
        """/api/models/ID/… and /api/datasets/ID/…"""
        if (method != "GET" and rest[:1] != ["paths-info"]) or rest == ["auth-check", "write"]:
            self.check_write(repo, user)
        flag = {name: values[0].lower() in ("1", "true") for name, values in query.items()}
        match [method, *rest]:
            case ["GET"] | ["GET", "revision", _]:
                return _json(self.info(repo, repo.at(rest[1] if rest else "main"), query))
            case ["GET", "tree", revision, *path]:
                commit, folder = repo.at(revision), "/".join(path)
                return _json(self.tree(commit, folder, flag.get("recursive", False), flag.get("expand", False)))
            case ["POST", "paths-info", revision]:
                form = parse_qs(body.decode())
                wanted = {path.strip("/") for path in form.get("paths", [])}
                entries = self.tree(repo.at(revision), "", True, form.get("expand") == ["true"])
                return _json([entry for entry in entries if entry["path"] in wanted])
            case ["GET", "refs"]:
                heads = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.branches.items()]
                tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repo.tags.items()]
                return _json({"branches": heads, "tags": tags, "converts": [], "pullRequests": []})
            case ["GET", "commits", revision]:
                history = repo.at(revision).history()
                return _json([c.json() | {"message": c.description, "authors": [{"user": c.author}]} for c in history])
            case ["GET", "auth-check", *_]:
                return _json({})
            case ["GET", "discussions"]:
                return _json({"discussions": [], "count": 0, "start": 0})
            case ["PUT", "settings"]:
                settings = json.loads(body)
                if "visibility" in settings or "private" in settings:
                    repo.private = settings.get("visibility") == "private" or settings.get("private") is True
                return _json({"private": repo.private})
            case ["POST", "branch", name]:
                return self.create_ref(repo, repo.branches, name, json.loads(body).get("startingPoint", "main"))
            case ["POST", "tag", revision]:
                return self.create_ref(repo, repo.tags, json.loads(body)["tag"], revision)
            case ["DELETE", ("branch" | "tag") as kind, name]:
                if name == "main":
                    raise HubError(403, "The default branch cannot be deleted")
                if (repo.branches if kind == "branch" else repo.tags).pop(name, None) is None:
                    raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
                return _json({})
            case ["POST", "preupload", revision]:
                return self.preupload(repo.at(revision), json.loads(body)["files"])
            case ["POST", "commit", revision]:
                if flag.get("create_pr"):
                    raise HubError(400, "The loopback hub has no pull requests: commit without create_pr")
                return self.commit(repo, revision, [json.loads(line) for line in body.splitlines() if line], user or "")
        raise HubError(404, f"The loopback hub does not know {method} /api/{repo.type}s/{repo.id}/{'/'.join(rest)}")

    def create_ref(self, repo: Repo, refs: dict[str, str], name: str, start: str) -> Answer:
        if name in refs:
            raise HubError(409, f"Reference already exists: {name}")
        refs[name] = repo.at(start).sha
        return _json({})

    def card(self, commit: Commit) -> dict[str, Any]:
        text = self.blobs[commit.files["README.md"].sha256].decode() if "README.md" in commit.files else ""
        matter = FRONT_MATTER.match(text)
        return (yaml.safe_load(matter[2]) if matter else None) or {}  # `commit` took no other than a mapping

    def info(self, repo: Repo, commit: Commit, query: dict[str, list[str]]) -> dict[str, Any]:
        card = self.card(commit)
        config = json.loads(self.blobs[commit.files["config.json"].sha256]) if "config.json" in commit.files else {}
        library = card.get("library_name") or ("transformers" if "model_type" in config else None)
        tags = [library, config.get("model_type"), "custom_code" if "auto_map" in config else None]
        spaces = {"pipeline_tag": "", "tags": "", "language": "", "task_categories": "task_categories:"}
        spaces |= {"datasets": "dataset:", "base_model": "base_model:", "license": "license:"}
        for key, namespace in spaces.items():
            values = card.get(key) or []
            tags += [f"{namespace}{value}" for value in (values if isinstance(values, list) else [values])]
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        for sibling in siblings if "blobs" in query else []:
            file = commit.files[sibling["rfilename"]]
            sibling |= {"size": file.size, "blobId": file.oid}
            if file.large:
                sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 130}
        info = {"id": repo.id, "author": repo.id.split("/")[0], "sha": commit.sha, "private": repo.private}
        info |= {"createdAt": commit.history()[-1].date, "lastModified": commit.date, "gated": False, "disabled": False}
        info |= {"tags": list(dict.fromkeys(filter(None, tags))), "cardData": card, "siblings": siblings}
        info |= {"downloads": 0, "likes": 0, "usedStorage": sum(file.size for file in commit.files.values())}
        if repo.type == "model":
            info |= {"modelId": repo.id, "library_name": library, "config": config}
            info |= {key: card.get(key) for key in ("pipeline_tag", "model-index")}
        return {key: info[key] for key in ["id", *query["expand"]] if key in info} if "expand" in query else info

    def tree(self, commit: Commit, folder: str, recursive: bool, expand: bool) -> list[dict[str, Any]]:
        """The entries of a folder, itself left out; with `expand`, each with the commit that last changed it."""
        age = {old.sha: index for index, old in enumerate(commit.history())}
        under = f"{folder.strip('/')}/" if folder.strip("/") else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, file in sorted(commit.files.items()):
            if not path.startswith(under):
                continue
            names = path[len(under) :].split("/")
            for depth in range(1, len(names) if recursive else min(len(names), 2)):
                parent = under + "/".join(names[:depth])
                oid = hashlib.sha1(f"{commit.sha}{parent}".encode()).hexdigest()
                entry = entries.setdefault(parent, {"type": "directory", "oid": oid, "size": 0, "path": parent})
                entry["commit"] = min(entry.get("commit", file.commit), file.commit, key=age.__getitem__)
            if recursive or len(names) == 1:
                entry = {"type": "file", "oid": file.oid, "size": file.size, "path": path, "commit": file.commit}
                if file.large:
                    entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
                entries[path] = entry
        if under and not entries:
            raise HubError(404, f"{folder} does not exist on {commit.sha}", "EntryNotFound", commit.sha)
        history = commit.history()
        for entry in entries.values():
            last = history[age[entry.pop("commit")]]
            if expand:
                entry["lastCommit"] = last.json()
        return list(entries.values())

    def preupload(self, commit: Commit, files: list[dict[str, Any]]) -> Answer:
        answers = []
        for file in files:
            path, present = file["path"], commit.files.get(file["path"])
            large = path.rsplit(".", 1)[-1].lower() in LARGE_SUFFIXES or file["size"] > LARGE_FILE
            oid = {"oid": present.etag} if present else {}
            answers.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **oid})
        return _json({"files": answers, "commitOid": commit.sha})

    def lfs_batch(self, objects: list[dict[str, Any]]) -> Answer:
        for wanted in objects:
            if wanted["oid"] not in self.blobs:
                upload, verify = f"{self.url}/_lfs/{wanted['oid']}", f"{self.url}/_lfs/verify"
                wanted["actions"] = {"upload": {"href": upload, "header": {}}, "verify": {"href": verify, "header": {}}}
        return _json({"transfer": "basic", "objects": objects})

    def commit(self, repo: Repo, branch: str, lines: list[dict[str, Any]], user: str) -> Answer:
        """All operations or none: the branch moves in the last line."""
        head, sha = repo.at(branch), self.new_sha()
        if branch not in repo.branches:
            raise HubError(400, f"{branch} is not a branch: commits go to branches", "RevisionNotFound")
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, head.sha):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines:
            value = line["value"]
            path = value.get("path", "").strip("/")
            if line["key"] != "header" and {"", ".", "..", ".git"} & set(path.split("/")):
                raise HubError(400, f"Invalid path in the repository: {value.get('path')!r}")
            match line["key"]:
                case "file":
                    files[path] = self.store(base64.b64decode(value["content"]), False, sha)
                case "lfsFile":
                    if value["oid"] not in self.blobs:
                        raise HubError(400, f"The large file {path} was never uploaded: {value['oid']}")
                    files[path] = File.of(self.blobs[value["oid"]], True, sha)
                case "copyFile":
                    source = repo.at(value.get("srcRevision") or branch).files.get(value["srcPath"])
                    if source is None:
                        raise HubError(404, f"A file with this name doesn't exist: {value['srcPath']}", "EntryNotFound")
                    files[path] = File.of(self.blobs[source.sha256], source.large, sha)
                case "deletedFile" | "deletedFolder" as key:
                    inside = [name for name in files if name.startswith(path + "/")]
                    gone = [path] if key == "deletedFile" else inside
                    if not gone or any(files.pop(name, None) is None for name in gone):
                        raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                case key if key != "header":
                    raise HubError(400, f"Unknown operation: {key}")
        for path, file in files.items():  # what was sent again unchanged keeps its commit
            old = head.files.get(path)
            if old and file.commit == sha and (old.sha256, old.large) == (file.sha256, file.large):
                files[path] = old
        if "README.md" in files and files["README.md"].commit == sha:
            errors, _ = check_card(self.blobs[files["README.md"].sha256].decode(), repo.type)
            if errors:
                raise HubError(400, "Invalid metadata in README.md. " + "; ".join(errors))
        repo.commit(branch, header["summary"], user, files, sha, header.get("description", ""))
        return _json({"success": True, "commitOid": sha, "commitUrl": f"{self.url}{repo.prefix}/commit/{sha}"})

    def resolve(self, repo: Repo, revision: str, path: str) -> Answer:
        commit = repo.at(revision)
        file = commit.files.get(path)
        if file is None:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound", commit.sha)
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        plain = "text/plain; charset=utf-8"  # a page is shown, not run
        headers = {"Content-Type": plain if kind.startswith("text/") else kind, "Accept-Ranges": "bytes"}
        headers |= {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit.sha}
        if file.large:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        return Answer(self.blobs[file.sha256], headers=headers)

    def page(self, repo: Repo) -> Answer:
        """What a browser sees, about as the Hub shows it."""
        from markdown_it import MarkdownIt

        commit = repo.at("main")
        card, files, raw = self.info(repo, commit, {}), commit.files, f"{repo.prefix}/resolve/main/"
        text = self.blobs[files["README.md"].sha256].decode() if "README.md" in files else "*No README.md*"
        matter = FRONT_MATTER.match(text)
        body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text[matter.end() :] if matter else text)
        # What is relative is in the repository.
        body = re.sub(r'(src|href)="(?:\./)?(?![\w+.-]+:|[/#])', rf'\1="{raw}', body)
        rows = "".join(
            f'<tr><td><a href="{raw}{quote(path)}">{html.escape(path)}</a></td><td>{file.size:,} B{" · LFS" * file.large}</td>'
            f"<td>{html.escape(repo.commits[file.commit].title)}</td></tr>"
            for path, file in sorted(files.items())
        )
        tags = "".join(f"<span class=tag>{html.escape(str(tag))}</span>" for tag in card["tags"])
        private = "<span class=tag>private</span>" if repo.private else ""
        metadata = f"<h3>Metadata</h3><pre>{html.escape(matter[2])}</pre>" if matter else ""
        history = "".join(f"<li><code>{c.sha[:7]}</code> {html.escape(c.title)}</li>" for c in commit.history())
        return Answer(
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{repo.id}</title><style>{STYLE}</style>"
            f"<header><h1>{repo.id} {private}</h1>{tags}</header><main><article>{body}</article>"
            f"<aside>{metadata}<h3>Files</h3><table>{rows}</table><h3>Commits</h3><ol>{history}</ol></aside></main>".encode(),
            headers={"Content-Type": "text/html; charset=utf-8"},
        )


STYLE = """
body{margin:0;font:16px/1.6 'Source Sans Pro',system-ui,sans-serif;color:#1f2937}header{padding:24px 40px;
border-bottom:1px solid #e5e7eb;background:linear-gradient(#f9fafb,#fff)}h1{font-size:1.5em;margin:.6em 0 .4em}header h1{
font-family:ui-monospace,monospace}.tag{display:inline-block;border:1px solid #e5e7eb;border-radius:8px;padding:0 8px;
margin:2px 6px 2px 0;font-size:13px;background:#fff}main{display:flex;flex-wrap:wrap;gap:40px;padding:24px 40px}article{flex:3
1 560px;min-width:0;max-width:860px}aside{flex:2 1 340px;min-width:0;font-size:13px}table{border-collapse:collapse;
display:block;overflow-x:auto}td,th{border:1px solid #e5e7eb;padding:4px 10px;text-align:left}img{max-width:100%}pre{padding:
12px;background:#f9fafb;border:1px solid #e5e7eb;border-radius:8px;overflow-x:auto;line-height:1.4}code{font-size:.88em}a{
color:#2563eb;text-decoration:none}blockquote{margin:0;padding-left:1em;border-left:4px solid #e5e7eb;color:#6b7280}
"""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may hang up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one(self) -> None:
        url, hub = urlsplit(self.path), self.hub
        with hub.lock:
            hub.requests.append((self.command, url.path))
            failure = hub.fail(self.command, url.path) if hub.fail else None
        if failure == "drop":
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.close_connection = True
            return
        body = self.read_body()
        if isinstance(failure, int | float) and failure >= 100:
            return self.send(_json({"error": f"The loopback hub was told to fail with {failure}"}, int(failure)))
        if isinstance(failure, int | float):
            time.sleep(failure)
        try:
            with hub.lock:
                answer = self.answer(url.path, parse_qs(url.query), body)
        except HubError as error:
            headers = {"X-Error-Message": str(error).replace("\n", " ").encode("ascii", "replace").decode()}
            headers |= {"X-Error-Code": error.code} if error.code else {}
            headers |= {"X-Repo-Commit": error.commit} if error.commit else {}
            answer = _json({"error": str(error)}, error.status, **headers)
        except Exception:  # a fault of this file: say so where the test can see it
            answer = _json({"error": f"The loopback hub broke: {traceback.format_exc()}"}, 501)
        self.send(answer, truncate=failure == "truncate")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, path: str, query: dict[str, list[str]], body: bytes) -> Answer:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        user = self.hub.tokens.get(token)
        if token and user is None and not path.startswith("/_lfs/"):
            raise HubError(401, "Invalid credentials in Authorization header")
        segments = [unquote(part) for part in path.strip("/").split("/")]
        return self.hub.route(self.command, segments, query, body, user)

    def send(self, answer: Answer, truncate: bool = False) -> None:
        """The answer, or the part of it that a Range asks for."""
        body, status, headers = answer.body, answer.status, answer.headers
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted and wanted[0] != "bytes=-" and "Accept-Ranges" in headers:
            size = len(body)
            start = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
            end = min(int(wanted[2]) + 1, size) if wanted[1] and wanted[2] else size
            status = 206 if start < end else 416
            served = f"{start}-{end - 1}" if status == 206 else "*"
            headers = headers | {"Content-Range": f"bytes {served}/{size}"}
            body = body[start:end] if status == 206 else b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if truncate else body)
        self.close_connection = self.close_connection or truncate
