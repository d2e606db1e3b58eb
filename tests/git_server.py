"""Git repositories for tests: made by git, and served by git-http-backend behind an HTTP server.

``Repository`` makes commits, also hostile ones. ``serving`` serves all repositories of a directory; a function may
handle each request first, to lie, to request a password or to redirect.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from registry_server import Asked, Said, Served, served

COMMITTED = 1_500_000_000
"""The time of every commit, in seconds since 1970."""
_DATE = f"{COMMITTED} +0000"
_ENVIRONMENT = {
    "GIT_AUTHOR_DATE": _DATE,
    "GIT_AUTHOR_EMAIL": "crab@example.com",
    "GIT_AUTHOR_NAME": "Crab",
    "GIT_COMMITTER_DATE": _DATE,
    "GIT_COMMITTER_EMAIL": "crab@example.com",
    "GIT_COMMITTER_NAME": "Crab",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "PATH": os.environ["PATH"],
}


def git(directory: Path, *arguments: str | Path, stdin: bytes = b"", **environment: str) -> str:
    """Run git with a name, a date and no configuration; returns its output, stripped."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    done = subprocess.run(
        ["git", *map(str, arguments)],
        cwd=directory,
        env=_ENVIRONMENT | environment,
        input=stdin,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


@dataclass(frozen=True)
class Repository:
    """A repository with a work tree; its branch is ``main``."""

    path: Path

    @classmethod
    def make(cls, path: Path, *, hash_: str = "sha1") -> Repository:
        """Make an empty repository from which any object can be fetched by its hash, as from hosting services."""
        path.mkdir(parents=True)
        git(path, "init", "--quiet", "--initial-branch=main", f"--object-format={hash_}")
        git(path, "config", "uploadpack.allowAnySHA1InWant", "true")
        return cls(path)

    def git(self, *arguments: str | Path, stdin: bytes = b"") -> str:
        """Run git here."""
        return git(self.path, *arguments, stdin=stdin)

    def commit(self, files: dict[str, str | bytes], *, executable: tuple[str, ...] = ()) -> str:
        """Write ``files`` (``"-> target"`` is a symbolic link) and commit everything; returns the hash."""
        for name, content in files.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str) and content.startswith("-> "):
                path.symlink_to(content.removeprefix("-> "))
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
                path.chmod(0o755 if name in executable else 0o644)
        self.git("add", "--all")
        return self.seal()

    def seal(self) -> str:
        """Commit the index; returns the hash."""
        self.git("commit", "--quiet", "--allow-empty", "--message=a commit")
        return self.git("rev-parse", "HEAD")

    def link(self, path: str, commit: str) -> None:
        """Add ``commit`` to the index at ``path`` as a submodule, also at a path that git refuses."""
        self.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")

    def describe(self, *modules: tuple[str, str, str], more: str = "") -> None:
        """Write ``.gitmodules``: name, path and URL of each; ``more`` is added to every section."""
        text = "".join(f'[submodule "{name}"]\n\tpath = {path}\n\turl = {url}\n{more}' for name, path, url in modules)
        (self.path / ".gitmodules").write_text(text)
        self.git("add", ".gitmodules")


Look = Callable[[Asked], Said | None]


@contextmanager
def serving(root: Path, look: Look | None = None) -> Iterator[Served]:
    """Serve the repositories in ``root`` over HTTP. A response of ``look`` is sent instead of git's; None leaves it to
    git."""

    def answer(asked: Asked) -> Said:
        said = look(asked) if look is not None else None
        return said if said is not None else backend(root, asked)

    with served(answer) as server:
        yield server


def backend(root: Path, asked: Asked) -> Said:
    """Return the response of git-http-backend(1) (RFC 3875)."""
    environment = {
        "CONTENT_LENGTH": str(len(asked.body)),
        "CONTENT_TYPE": asked.headers.get("content-type", ""),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_PROJECT_ROOT": str(root),
        "HTTP_CONTENT_ENCODING": asked.headers.get("content-encoding", ""),
        "HTTP_GIT_PROTOCOL": asked.headers.get("git-protocol", ""),
        "PATH_INFO": asked.path,
        "QUERY_STRING": asked.target.partition("?")[2],
        "REMOTE_ADDR": "127.0.0.1",
        "REQUEST_METHOD": asked.method,
    }
    done = subprocess.run(
        ["git", "http-backend"], env=_ENVIRONMENT | environment, input=asked.body, capture_output=True, check=False
    )
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
    return Said(int(headers.pop("Status", "200").split()[0]), headers, body)
