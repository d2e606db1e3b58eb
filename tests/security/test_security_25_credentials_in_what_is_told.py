"""Attack 25 (CVE-2023-26054 BuildKit): the password of a git URL is in what a build tells about itself.

Each way by which something secret comes into a build has a token of its own, and none of them is anywhere after it.
"""

from __future__ import annotations

import base64
import gzip
import os
from collections.abc import Iterator
from pathlib import Path

from conftest import Base, Kanifold, needs
from git_server import Repository, serving
from registry_server import HTPASSWD, PASSWORD, USER, Asked, Said, docker_registry

GIT, PROXY, SECRET, VARIABLE = "git-token-5c1", "proxy-token-5c2", "file-token-5c3", "variable-token-5c4"


def everything_below(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file's name and content, unpacked when it is a layer."""
    for path in folder.rglob("*"):
        yield path, os.fsencode(path)
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            yield path, gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def test_no_token_is_anywhere_afterwards(kanifold: Kanifold, busybox: Base, tmp_path: Path) -> None:
    needs("git", "skopeo")
    repository = Repository.make(tmp_path / "served" / "x.git")
    repository.commit(
        {
            "Dockerfile": f"FROM {busybox.ref}\nCOPY Dockerfile /d\n"
            "RUN --mount=type=secret,id=file --mount=type=secret,id=variable,env=V "
            'test -s /run/secrets/file; echo "$V" "$HTTP_PROXY"; cat /run/secrets/file\n'
        }
    )
    repository.seal()
    basic = base64.b64encode(f"user:{GIT}".encode()).decode()
    welcome = []

    def look(asked: Asked) -> Said | None:
        if asked.headers.get("authorization", "").partition(" ")[2] != basic:
            return Said(401, {"www-authenticate": 'Basic realm="git"'})
        welcome.append(asked)
        return None

    (tmp_path / "secret").write_text(SECRET)
    told = tmp_path / "told"
    told.mkdir()
    with (
        serving(tmp_path / "served", look) as server,
        docker_registry(
            tmp_path / "registry", auth=f"{{htpasswd: {{realm: r, path: {_password_file(tmp_path)}}}}}"
        ) as registry,
    ):
        login = {"auths": {registry: {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}}}
        (kanifold.home / ".docker").mkdir()
        (kanifold.home / ".docker" / "config.json").write_text(str(login).replace("'", '"'))
        kept = set(kanifold.home.rglob("*"))
        said = ""
        for progress, debug in (("plain", ""), ("rawjson", ""), ("quiet", "1")):
            done = kanifold(
                "build", f"http://user:{GIT}@{server.host}/x.git", "-t", f"{registry}/app:1", "--push",
                "-o", f"type=oci,tar=false,dest={told / progress}", "--no-cache", "--progress", progress,
                "--metadata-file", told / f"{progress}.json", "--trace", told / f"{progress}.trace",
                "--cache-to", f"type=registry,ref={registry}/cache,mode=max",
                "--cache-to", f"type=local,dest={told / 'cache'},mode=max",
                "--secret", f"id=file,src={tmp_path / 'secret'}", "--secret", "id=variable,env=GIVEN",
                "--build-arg", f"HTTP_PROXY=http://user:{PROXY}@127.0.0.1:9", "--build-arg", "NO_PROXY=*",
                GIVEN=VARIABLE, KANIFOLD_DEBUG=debug,
            )  # fmt: skip
            said += done.said
        assert welcome, "the token was never asked for"
        assert f"git runs command=ls-remote remote=http://{server.host}/x.git" in said
        places = (told, kanifold.home, tmp_path / "registry")
        for token in (GIT, SECRET, VARIABLE, PASSWORD, PROXY):
            if token != PROXY:  # a step may print what its environment holds, and this one does
                assert token not in said
            for place in places:
                found = [
                    str(path) for path, data in everything_below(place) if path not in kept and token.encode() in data
                ]
                assert found == []
        assert basic not in said


def _password_file(folder: Path) -> Path:
    path = folder / "htpasswd"
    path.write_text(HTPASSWD + "\n")
    return path


def test_no_token_is_in_an_error(kanifold: Kanifold, tmp_path: Path) -> None:
    """Where the address itself is what failed."""
    for place in (
        f"http://user:{GIT}@127.0.0.1:1/x.git",
        f"http://user:{GIT}@127.0.0.1:1/x.tar",
        f"git://u:{GIT}@127.0.0.1:1/x",
    ):
        for progress, debug in (("plain", ""), ("rawjson", ""), ("plain", "1")):
            done = kanifold.run("build", place, "--progress", progress, KANIFOLD_DEBUG=debug)
            assert done.code == 1
            assert GIT not in done.said
