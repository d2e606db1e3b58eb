"""The world that a case's Dockerfile speaks of: base images in a registry, web files, git repositories.

The same world serves BuildKit when it is recorded and kanifold when it is compared; only its port differs each time,
so whatever comes out of it is compared with ``HOST`` in the port's place.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bases
from conformance_case import MTIME, Case, content_of, write_files
from oci_layout import Image, Seen, pack, read_image, write_layout
from registry_server import Asked, Said, Served, served

PLATFORMS = ("linux/amd64", "linux/arm64")
YEAR = 365 * 86400
"""Seconds: what was modified within the last year was modified by the build, and cases use no such times."""
_GIT = {
    "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.com", "GIT_AUTHOR_DATE": f"{MTIME} +0000",
    "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.com", "GIT_COMMITTER_DATE": f"{MTIME} +0000",
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """Where a case finds what it asks for."""

    registry: str
    """``127.0.0.1:PORT``, the mirror of docker.io: ``FROM busybox`` is its ``library/busybox``."""
    web: Served
    base: Path
    """busybox as an OCI layout."""
    programs: tuple[str, ...]
    """The digests of its one program."""

    def places(self, case: Case) -> dict[str, str]:
        """What ``{{NAME}}`` means in the case's Dockerfile."""
        return {
            "http": f"{self.web.url}/{case.name}",
            "git": f"{self.web.url}/git/{case.name}.git",
            "registry": self.registry,
        }

    def neutral(self, text: str) -> str:
        """``text`` without the ports, which are others each time, and without what names a version of busybox."""
        text = text.replace(self.web.host, "HOST").replace(self.registry, "REGISTRY")
        for digest in self.programs:
            text = text.replace(digest, "BUSYBOX")
        return text


@contextlib.contextmanager
def world(cases: Iterable[Case], registry: str, folder: Path) -> Iterator[World]:
    """Push the bases to ``registry`` and serve files and repositories of ``cases`` from below ``folder``."""
    cases = tuple(cases)
    base = folder / "busybox"
    bases.make_layout("busybox", base, PLATFORMS)
    _push(base, f"{registry}/library/busybox:latest")
    for case in cases:
        for name, described in case.images.items():
            layout = Path(tempfile.mkdtemp(dir=folder)) / "layout"
            _write_base(layout, described)
            _push(layout, f"{registry}/library/{name}:latest")
        if case.git:
            _write_repository(folder / "git" / f"{case.name}.git", case.git)
    files = {f"/{case.name}/{each['path']}": each for case in cases for each in case.http}

    def answer(asked: Asked) -> Said:
        if asked.path.startswith("/git/"):
            return _git_answer(asked, folder / "git")
        if asked.path not in files:
            return Said(404, {}, b"no such file")
        each = files[asked.path]
        return Said(each.get("status", 200), dict(each.get("headers", {})), content_of(each))

    with served(answer) as web:
        programs = tuple(read_image(base, platform).tree["bin/busybox"].digest for platform in PLATFORMS)
        yield World(registry, web, base, programs)


def base_of(seen: Seen, here: World) -> Seen | None:
    """The busybox (of any platform) that an image stands on; None when it stands on nothing."""
    first = next(iter(seen.config["rootfs"]["diff_ids"] or ()), None)
    candidates = (read_image(here.base, platform) for platform in PLATFORMS)
    return next((each for each in candidates if each.config["rootfs"]["diff_ids"][0] == first), None)


def _push(layout: Path, ref: str) -> None:
    copy = ["skopeo", "copy", "--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false"]
    subprocess.run([*copy, f"oci:{layout}", f"docker://{ref}"], check=True, capture_output=True)


def _write_base(layout: Path, described: Mapping[str, Any]) -> None:
    """An image of the case's own: busybox (or nothing, with ``scratch``), then a layer of ``files``, and a config."""
    images = []
    for platform in described.get("platforms", PLATFORMS):
        layers = [] if described.get("scratch") else [bases.busybox_layer(platform)]
        if "files" in described:
            raw = content_of({"tar": described["files"]})
            with tempfile.NamedTemporaryFile(delete=False, dir=layout.parent) as scratch:
                layers.append(pack(io.BytesIO(raw), Path(scratch.name)))
        config = {"Env": [f"PATH={bases.PATH}"], "Cmd": ["/bin/sh"]} | dict(described.get("config", {}))
        images.append(Image(bases.PLATFORMS[platform].oci, tuple(layers), config))
    write_layout(layout, "latest", images)


def _write_repository(bare: Path, commits: Iterable[Mapping[str, Any]]) -> None:
    with tempfile.TemporaryDirectory(dir=bare.parents[1]) as name:
        work = Path(name) / "work"
        work.mkdir()
        _git(work, "init", "--quiet", "--initial-branch=main")
        for each in commits:
            if "branch" in each:
                _git(work, "checkout", "--quiet", "-B", each["branch"])
            write_files(work, each["files"], (os.getuid(), os.getgid()))
            _git(work, "add", "--all")
            _git(work, "commit", "--quiet", "--message", each.get("message", "a commit"))
            if "tag" in each:
                _git(work, "tag", *(["-a", "-m", "a tag"] if each.get("annotated") else []), each["tag"])
        _git(work, "checkout", "--quiet", "main")
        bare.parent.mkdir(parents=True, exist_ok=True)
        _git(work, "clone", "--quiet", "--bare", str(work), str(bare))


def _git(where: Path, *arguments: str) -> None:
    environment = {"PATH": os.environ["PATH"], **_GIT}
    subprocess.run(["git", *arguments], cwd=where, env=environment, check=True, capture_output=True)


def _git_answer(asked: Asked, root: Path) -> Said:
    """git's own CGI program (git-http-backend(1)) over one request."""
    environment = {
        "PATH": os.environ["PATH"], **_GIT,
        "GIT_PROJECT_ROOT": str(root), "GIT_HTTP_EXPORT_ALL": "1", "REQUEST_METHOD": asked.method,
        "PATH_INFO": asked.path.removeprefix("/git"), "QUERY_STRING": asked.target.partition("?")[2],
        "CONTENT_TYPE": asked.headers.get("content-type", ""), "CONTENT_LENGTH": str(len(asked.body)),
        "HTTP_CONTENT_ENCODING": asked.headers.get("content-encoding", ""),
        "GIT_PROTOCOL": asked.headers.get("git-protocol", ""), "REMOTE_ADDR": "127.0.0.1",
    }  # fmt: skip
    done = subprocess.run(["git", "http-backend"], input=asked.body, env=environment, capture_output=True, check=False)
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    fields = (line.partition(": ") for line in head.decode().split("\r\n"))
    headers = {name: value for name, _, value in fields}
    status = int(headers.pop("Status", "200").split()[0])
    return Said(status, headers, body)
