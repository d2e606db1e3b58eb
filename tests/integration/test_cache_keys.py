"""A step's cache key changes with everything that the step can observe, and with nothing else.

Each row is built twice, changed, and built again in one store. The image of the last build must be identical to that
of a build without a cache in an empty store. The second build finds everything in the cache and stores its result
(``result_cache``), so each change of a step's key must change the key of the result too. All times are limited to
SOURCE_DATE_EPOCH, second 1.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from conftest import Base, Kanifold
from forking import Forks
from oci_layout import image_manifests, read_image
from registry_server import Asked, Said, served

Verdict = Literal["hit", "miss", "last hit"]
"""Whether the second build finds every step, not its last one, or its last one although not all before it."""

DOCKERFILE = "Dockerfile"
FILES = {
    "f": "one\n", "x": "other\n", "hidden": "1\n", "passwd": "who:x:7:7::/home/who:/bin/sh\n",
    "d/g": "g\n", "d/h": "h\n", "d/deep/er/t": "t\n", "d/deep/er/u": "u\n", ".dockerignore": "hidden\n",
}  # fmt: skip
LINKS = {"l1": "f", "d/l": "g"}


@dataclass
class World:
    """A context, what a build of it is told, and what is outside of both."""

    context: Path
    base: str
    kanifold: Kanifold
    url: str
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=lambda: {"SOURCE_DATE_EPOCH": "1"})
    remote: dict[str, str] = field(default_factory=lambda: {"body": "remote\n", "last-modified": "", "etag": '"1"'})

    def build(self, forks: Forks, out: Path, *arguments: str | Path) -> list[bool]:
        """Build into the layout ``out``; for each step with a layer, in order, whether it was in the cache."""
        return self._build(forks, out, "-o", f"type=oci,tar=false,dest={out}", *arguments)

    def push(self, forks: Forks, log: Path) -> tuple[str, list[bool]]:
        """Build and push; the image's digest, and as ``build``."""
        cached = self._build(forks, log, "--push", "-t", f"{self.base.partition('/')[0]}/keys/{self.context.name}:1")
        return next(line for line in log.with_suffix(".log").read_text().splitlines() if line[:7] == "sha256:"), cached

    def _build(self, forks: Forks, out: Path, *arguments: str | Path) -> list[bool]:
        given = [each.replace("{home}", str(self.kanifold.home)) for each in self.arguments]
        told = ["build", self.context, "--progress", "rawjson"]
        log = out.with_suffix(".log")
        status = forks([*map(str, (*told, *given, *arguments))], self.kanifold.environment(**self.environment), log)
        assert status == 0, log.read_text()
        events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        names = {step["id"]: step["name"] for each in events if each["type"] == "planned" for step in each["steps"]}
        cached = {each["step"]: each["cached"] for each in events if each["type"] == "step_finished"}
        return [cached[number] for number in sorted(cached) if not names[number].upper().startswith("FROM")]


Change = Callable[[World], object]


def told(*arguments: str, **environment: str) -> Change:
    """The build is told something further, or else."""

    def change(world: World) -> None:
        names = {each.partition("=")[0] for each in arguments if each.startswith("--")}
        world.arguments = [each for each in world.arguments if each.partition("=")[0] not in names] + list(arguments)
        world.environment |= environment

    return change


def text(name: str, content: str) -> Change:
    return lambda world: (world.context / name).write_text(content)


def written(old: str, new: str) -> Change:
    """The Dockerfile says ``new`` where it said ``old``."""

    def change(world: World) -> None:
        path = world.context / DOCKERFILE
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new))

    return change


def mode(name: str, bits: int) -> Change:
    return lambda world: (world.context / name).chmod(bits)


def linked(name: str, target: str) -> Change:
    def change(world: World) -> None:
        (world.context / name).unlink()
        (world.context / name).symlink_to(target)

    return change


def one_file(name: str, other: str) -> Change:
    """``name`` becomes a hard link to ``other``."""

    def change(world: World) -> None:
        (world.context / name).unlink()
        (world.context / name).hardlink_to(world.context / other)

    return change


def renamed(old: str, new: str) -> Change:
    return lambda world: (world.context / old).rename(world.context / new)


def touched(name: str) -> Change:
    return lambda world: os.utime(world.context / name, (3, 3))


def attribute(name: str) -> Change:
    def change(world: World) -> None:
        try:
            os.setxattr(world.context / name, "user.key", b"value")
        except OSError as error:
            pytest.skip(f"no attributes here: {error}")

    return change


def served_as(**changed: str) -> Change:
    def change(world: World) -> None:
        world.remote |= changed

    return change


def packed(content: str) -> Change:
    """``d.tar`` holds one file."""

    def change(world: World) -> None:
        (world.context.parent / "inside").write_text(content)
        with tarfile.open(world.context / "d.tar", "w") as archive:
            archive.add(world.context.parent / "inside", "inside")

    return change


def other_base(instruction: str) -> Change:
    """The tag that the Dockerfile builds on is moved to an image with one instruction more."""

    def change(world: World) -> None:
        folder = world.context.parent / "base"
        folder.mkdir(exist_ok=True)
        (folder / DOCKERFILE).write_text(f"FROM {world.base}\n{instruction}\n")
        world.kanifold("build", folder, "-t", f"{world.base}-own", "--push", "--root", folder.parent / "elsewhere")

    return change


def secret(value: str) -> Change:
    return told("--secret=id=s,env=GIVEN", GIVEN=value)


def without(*names: str) -> Change:
    def change(world: World) -> None:
        world.arguments = [each for each in world.arguments if each.partition("=")[0] not in names]

    return change


def agent(world: World) -> None:
    """The build is given an SSH agent."""
    path = str(world.kanifold.home / "agent")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
    world.arguments.append("--ssh=default={home}/agent")


def used_cache(world: World) -> None:
    """Another build leaves something in the cache mount of the id ``c``."""
    folder = world.context.parent / "user"
    folder.mkdir()
    (folder / DOCKERFILE).write_text(f"FROM {world.base}\nRUN --mount=type=cache,id=c,target=/c echo >/c/left\n")
    world.kanifold("build", folder, "-o", f"type=oci,dest={folder.parent}/ignored")


def both(*changes: Change) -> Change:
    def change(world: World) -> None:
        for each in changes:
            each(world)

    return change


def nothing(_: World) -> None:
    pass


@dataclass(frozen=True)
class Row:
    name: str
    verdict: Verdict
    dockerfile: str
    """On top of the busybox base where it does not begin with a FROM of its own."""
    change: Change
    before: Change = nothing


SEEN = "RUN (env; pwd; id) > /tmp/seen"
SECRET = "RUN --mount=type=secret,id=s if test -e /run/secrets/s; then stat -c %a%u%g /run/secrets/s; fi > /seen"
SSH = "RUN --mount=type=ssh (test -S $SSH_AUTH_SOCK && stat -c %a $SSH_AUTH_SOCK || echo none) > /seen"
CACHE = "RUN --mount=type=cache,id=c,target=/c stat -c %a%u%g /c > /seen; ls -A /c/d | grep -v left >> /seen; true"
BIND = "RUN --mount=target=/m,source=d ls -lR /m | grep -o ^.......... > /seen; cat /m/g >> /seen"
SHOWN = (
    "FROM {base} AS a\nRUN mkdir -p /o/d; ln -s f /o/l; echo 1 > /o/f\nFROM {base}\n"
    "RUN --mount=from=a,source=/o,target=/m stat -c %n%a%u%N /m /m/* > /seen; cat /m/f >> /seen"
)
TMPFS = "RUN --mount=type=tmpfs,target=/m,size=65536 df /m | tail -1 > /seen"
STAGES = (
    "FROM {base} AS a\nRUN echo 1 > /made; touch -d @7 /made\n"
    "FROM {base}\nCOPY --from=a /made /made\nRUN cat /made > /seen"
)
OWN = "FROM {base}-own\n"

ROWS = (
    # -- files
    Row("nothing", "hit", "COPY . /c/\nRUN true", nothing),
    Row("content", "miss", "COPY f /f", text("f", "two\n")),
    Row("content of the same size and time", "miss", "COPY f /f", both(text("f", "two\n"), touched("f")), touched("f")),
    Row("content below", "miss", "COPY d /d", text("d/deep/er/t", "T\n")),
    Row("mode", "miss", "COPY f /f", mode("f", 0o600)),
    Row("execute bit", "miss", "COPY f /f", mode("f", 0o755)),
    Row("setuid bit", "miss", "COPY f /f", mode("f", 0o4644)),
    Row("mode of a directory", "miss", "COPY d /d", mode("d/deep", 0o700)),
    Row("target of a link", "miss", "COPY d /d", linked("d/l", "h")),
    Row("a file in place of a link", "miss", "COPY d /d", both(lambda w: (w.context / "d/l").unlink(), text("d/l",
        "g\n"))),
    Row("a link in place of a file", "miss", "COPY d /d", linked("d/h", "g")),
    Row("what a link leads to", "miss", "COPY l1 /f", text("f", "two\n")),
    Row("where a link leads to", "miss", "COPY l1 /f", linked("l1", "x")),
    Row("name of a link that a wildcard matches", "miss", "COPY l* /to/", renamed("l1", "l2")),
    Row("two files become one", "miss", "COPY d /d", one_file("d/same", "d/g"), text("d/same", "g\n")),
    Row("attribute of a file", "hit", "COPY f /f", attribute("f")),
    Row("one more file", "miss", "COPY d /d", text("d/more", "")),
    Row("one more empty directory", "miss", "COPY d /d", lambda w: (w.context / "d/more").mkdir()),
    Row("a file less", "miss", "COPY d /d", lambda w: (w.context / "d/h").unlink()),
    Row("another name", "miss", "COPY d /d", renamed("d/h", "d/i")),
    Row("another name that a wildcard matches", "miss", "COPY d/[hi] /to/", renamed("d/h", "d/i")),
    Row("one more that a wildcard matches", "miss", "COPY d/? /to/", text("d/j", "")),
    Row("something else in the context", "hit", "COPY d /d\nCOPY f /f", text("x", "changed\n")),
    Row("an ignored file", "hit", "COPY . /c/", text("hidden", "2\n")),
    Row("what is ignored", "miss", "COPY d /d", text(".dockerignore", "d/h\n")),
    Row("how it is said what is ignored", "hit", "COPY d /d", text(".dockerignore", "# none\nhid*\n")),
    Row("time of a file", "hit", "COPY d /d", touched("d/g")),
    Row("time of a directory", "hit", "COPY d /d", touched("d/deep")),
    Row("destination", "miss", "COPY f /f", written("/f", "/g")),
    Row("destination as a directory", "miss", "COPY f /f", written("/f", "/f/")),
    Row("working directory of a destination", "miss", "WORKDIR /w\nCOPY f f", written("/w", "/v")),
    Row("link in the stage at the destination", "miss", "RUN ln -s /a /to\nCOPY d /to/d", written("/a", "/b")),
    Row("--chown", "miss", "COPY --chown=1:2 f /f", written("1:2", "1:3")),
    Row("--chmod", "miss", "COPY --chmod=640 f /f", written("640", "600")),
    Row("whom --chown names", "miss", "COPY passwd /etc/passwd\nCOPY --chown=who f /f",
        text("passwd", "who:x:8:8::/:/bin/sh\n")),
    Row("--exclude", "miss", "COPY --exclude=h d /d", written("=h", "=g")),
    Row("a file that --exclude leaves out", "hit", "COPY --exclude=h --exclude=deep d /d",
        both(text("d/h", "2"), text("d/deep/new", ""))),
    Row("a file that --exclude lets back in", "miss", "COPY --exclude=deep --exclude=!deep/er/t d /d",
        text("d/deep/er/t", "2")),
    Row("--parents", "miss", "COPY d/deep/er/t /to/", written("COPY", "COPY --parents")),
    Row("a file under --parents", "miss", "COPY --parents d/deep/*/t /to/", text("d/deep/er/t", "2")),
    Row("mode of a parent under --parents", "miss", "COPY --parents d/deep/er/t /to/", mode("d/deep", 0o700)),
    Row("a neighbour under --parents", "hit", "COPY --parents d/deep/er/t /to/",
        both(text("d/deep/er/u", "2"), text("d/new", ""), mode("x", 0o600))),
    Row("pivot of --parents", "miss", "COPY --parents d/./deep/er/t /to/", written("d/./deep/er", "d/deep/./er")),
    Row("--link", "miss", "COPY f /f", written("COPY", "COPY --link")),
    Row("what is below a --link", "last hit", "RUN echo 1 > /1\nCOPY --link --chown=3:4 f /f", written("echo 1",
        "echo 2")),
    Row("order of layers", "miss", "COPY f /to\nCOPY x /to", written("f /to\nCOPY x /to", "x /to\nCOPY f /to")),
    Row("content of a here-document", "miss", "COPY <<E /f\nold\nE", written("old", "new")),
    Row("name of a here-document", "miss", "COPY <<name /to/\n1\nname", written("name", "other")),
    Row("variable in a here-document", "miss", "ENV A=1\nCOPY <<E /f\n$A\nE", written("A=1", "A=2")),
    Row("variable in a quoted here-document", "hit", "ENV A=1\nCOPY <<'E' /f\n$A\nE", written("A=1", "A=2")),
    Row("archive", "miss", "ADD d.tar /to/", packed("2"), packed("1")),
    Row("whether an archive is unpacked", "miss", "ADD d.tar /to/", written("ADD", "ADD --unpack=false"), packed("1")),
    Row("a named context", "miss", "COPY --from=other f /f", text("d/f", "2"),
        both(text("d/f", "1"), lambda w: told(f"--build-context=other={w.context / 'd'}")(w))),
    # -- URLs
    Row("URL, unchanged", "hit", "ADD {url}/f /f", nothing),
    Row("content behind a URL", "miss", "ADD {url}/f /f", served_as(body="else\n", etag='"2"')),
    Row("content behind a URL that has no tag", "miss", "ADD {url}/f /f", served_as(body="else\n"), served_as(etag="")),
    Row("time of a URL", "hit", "ADD {url}/f /f",
        served_as(**{"last-modified": "Tue, 01 Jan 2019 00:00:00 GMT", "etag": '"2"'}),
        served_as(**{"last-modified": "Mon, 01 Jan 2018 00:00:00 GMT"})),
    Row("name of a URL", "miss", "ADD {url}/f /to/", written("/f /to", "/g /to")),
    # -- ARG
    Row("ARG", "miss", f"ARG A=1\n{SEEN}", told("--build-arg=A=2")),
    Row("default of an ARG", "miss", f"ARG A=1\n{SEEN}", written("A=1", "A=2")),
    Row("default of an ARG that is given", "hit", f"ARG A=1\n{SEEN}", written("A=1", "A=2"), told("--build-arg=A=3")),
    Row("ARG that only becomes known", "miss", f"ARG A\n{SEEN}", told("--build-arg=A=")),
    Row("ARG declared later", "hit", f"{SEEN}\nARG A=1", told("--build-arg=A=2")),
    Row("ARG declared nowhere", "hit", SEEN, told("--build-arg=A=2")),
    Row("ARG of another stage", "hit", f"FROM {{base}} AS a\nARG A=1\nFROM {{base}}\n{SEEN}", told("--build-arg=A=2")),
    Row("order of two ARGs", "miss", f"ARG A=1\nARG B=2\n{SEEN}", written("ARG A=1\nARG B=2", "ARG B=2\nARG A=1")),
    Row("two ARGs whose texts join alike", "miss", f"ARG A=x-B=z\nARG B=y\n{SEEN}", written("A=x-B=z\nARG B=y",
        "A=x\nARG B=z-B=y")),
    Row("ARG in a path", "miss", "ARG A=f\nCOPY $A /f", told("--build-arg=A=x")),
    Row("ARG that COPY does not use", "hit", "ARG A=1\nCOPY f /f", told("--build-arg=A=2")),
    Row("proxy", "hit", "RUN true", told("--build-arg=HTTP_PROXY=http://127.0.0.1:9")),
    Row("proxy that is declared", "miss", f"ARG HTTP_PROXY\n{SEEN}", told("--build-arg=HTTP_PROXY=http://127.0.0.1:9")),
    Row("BUILDKIT_SANDBOX_HOSTNAME", "miss", "RUN hostname > /h", told("--build-arg=BUILDKIT_SANDBOX_HOSTNAME=h")),
    # -- configuration
    Row("ENV", "miss", f"ENV A=1\n{SEEN}", written("A=1", "A=2")),
    Row("order of two ENVs", "miss", f"ENV A=1\nENV B=2\n{SEEN}", written("ENV A=1\nENV B=2", "ENV B=2\nENV A=1")),
    Row("ENV set later", "hit", f"{SEEN}\nENV A=1", written("A=1", "A=2")),
    Row("WORKDIR", "miss", f"WORKDIR /w\n{SEEN}", written("/w", "/v")),
    Row("USER", "miss", f"USER 1\n{SEEN}", written("USER 1", "USER 2")),
    Row("group of USER", "miss", f"USER 1:1\n{SEEN}", written("1:1", "1:2")),
    Row("whom USER names", "miss", f"COPY passwd /etc/passwd\nUSER who\n{SEEN}", text("passwd",
        "who:x:8:8::/:/bin/sh\n")),
    Row("who owns a WORKDIR", "miss", "USER 1\nWORKDIR /w", written("USER 1", "USER 2")),
    Row("SHELL", "miss", f"SHELL [\"/bin/sh\", \"-c\"]\n{SEEN}", written('"-c"', '"-ec"')),
    Row("what a step does not see", "hit",
        f"LABEL a=1\nCMD [\"a\"]\nEXPOSE 1\nSTOPSIGNAL 9\nHEALTHCHECK NONE\nVOLUME /1\nENTRYPOINT [\"e\"]\n{SEEN}",
        both(written("LABEL a=1", "LABEL a=2 b=3"), written('CMD ["a"]', "CMD b"), written("EXPOSE 1", "EXPOSE 2"),
             written("HEALTHCHECK NONE", "HEALTHCHECK CMD x"), written("STOPSIGNAL 9", "STOPSIGNAL 3"),
             written("VOLUME /1", "VOLUME /2"), written('["e"]', "f"), told("--label=c=4"))),
    Row("SOURCE_DATE_EPOCH", "miss", SEEN, told(SOURCE_DATE_EPOCH="2")),
    # -- steps
    Row("command", "miss", "RUN echo 1 > /1", written("echo 1", "echo 2")),
    Row("comments and breaks", "hit", "RUN echo 1 > /1", written("RUN echo 1", "# new\nrun \\\n  echo 1")),
    Row("shell or not", "miss", 'RUN ["/bin/sh", "-c", "echo $0 > /1"]',
        written('["/bin/sh", "-c", "echo $0 > /1"]', "echo $0  > /1")),
    Row("here-document of a step", "miss", "RUN <<E\necho 1 > /1\nE", written("echo 1", "echo 2")),
    Row("program as a here-document", "miss", "RUN <<E\n#!/bin/sh\necho 1 > /1\nE", written("echo 1", "echo 2")),
    Row("step before", "miss", "RUN echo 1 > /1\nRUN cat /1 > /2", written("echo 1", "echo 2")),
    Row("--network of a step", "miss", "RUN ls /sys/class/net > /n", written("RUN", "RUN --network=none")),
    Row("--network of a build", "miss", "RUN ls /sys/class/net > /n", told("--network=none")),
    Row("--add-host", "miss", "RUN cat /etc/hosts > /h", told("--add-host=h:1.2.3.4")),
    Row("--ulimit", "miss", "RUN ulimit -n > /n", told("--ulimit=nofile=77:99")),
    Row("--shm-size", "miss", "RUN df /dev/shm | tail -1 > /s", told("--shm-size=1m")),
    Row("--no-cache", "miss", SEEN, told("--no-cache")),
    Row("--no-cache-filter", "miss", f"FROM {{base}} AS a\n{SEEN}", told("--no-cache-filter=a")),
    Row("--no-cache-filter of another stage", "hit", f"FROM {{base}} AS a\n{SEEN}", told("--no-cache-filter=b")),
    # -- mounts
    Row("value of a secret", "hit", SECRET, secret("2"), secret("1")),
    Row("a secret that comes", "miss", SECRET, secret("1")),
    Row("a secret that goes", "miss", SECRET, without("--secret"), secret("1")),
    Row("value of a secret in a variable", "hit", "RUN --mount=type=secret,id=s,env=S test -n $S", secret("2"),
        secret("1")),
    Row("a secret in a variable that comes", "miss", "RUN --mount=type=secret,id=s,env=S echo ${S:+yes} > /1",
        secret("2")),
    Row("name of a secret's variable", "miss", "RUN --mount=type=secret,id=s,env=S echo ${S:+yes} > /1",
        written("env=S", "env=T"), secret("1")),
    Row("a required secret that goes", "hit", "RUN --mount=type=secret,id=s,required true", nothing, secret("1")),
    Row("id of a secret", "miss", SECRET, written("id=s", "id=t"), secret("1")),
    Row("mode of a secret", "miss", SECRET, written("id=s", "id=s,mode=0444"), secret("1")),
    Row("owner of a secret", "miss", SECRET, written("id=s", "id=s,uid=3"), secret("1")),
    Row("group of a secret", "miss", SECRET, written("id=s", "id=s,gid=3"), secret("1")),
    Row("an agent that comes", "miss", SSH, agent),
    Row("mode of an agent", "miss", SSH, written("type=ssh", "type=ssh,mode=0666"), agent),
    Row("what is in a cache", "hit", CACHE, used_cache),
    Row("id of a cache", "miss", CACHE, written("id=c", "id=d")),
    Row("mode of a cache", "miss", CACHE, written("id=c", "id=c,mode=0700")),
    Row("owner of a cache", "miss", CACHE, written("id=c", "id=c,uid=3")),
    Row("sharing of a cache", "hit", CACHE, written("id=c", "id=c,sharing=locked")),
    Row("what fills a cache", "miss", "FROM scratch AS s\nCOPY f /d/f\n" "FROM {base}\n" + CACHE.replace("id=c",
        "id=c,from=s"),
        written("/d/f", "/d/g")),
    Row("content of a bind mount", "miss", BIND, text("d/g", "2\n")),
    Row("mode in a bind mount", "miss", BIND, mode("d/h", 0o755)),
    Row("beside a bind mount", "hit", BIND, text("f", "2\n")),
    Row("source of a bind mount", "miss", BIND, both(written("source=d", "source=e"),
        lambda w: (w.context / "e").mkdir(), text("e/g", ""))),
    Row("target of a bind mount", "miss", BIND, written("/m", "/n")),
    Row("bind mount that may be written", "miss", BIND, written("source=d", "source=d,rw")),
    Row("bind mount of a stage", "miss",
        "FROM scratch AS a\nCOPY f /f\nFROM {base}\nRUN --mount=from=a,target=/m cat /m/f > /seen", text("f", "2\n")),
    Row("mounted stage that makes the same in another way", "last hit", SHOWN, written("echo 1", "echo  1")),
    Row("another file of a mounted stage", "last hit", SHOWN, written("echo 1 >", "touch /new; echo 1 >")),
    Row("content in a mounted stage", "miss", SHOWN, written("echo 1", "echo 2")),
    Row("another file in what is mounted", "miss", SHOWN, written("echo 1", "touch /o/n; echo 1")),
    Row("mode in a mounted stage", "miss", SHOWN, written("echo 1 >", "chmod 700 /o/d; echo 1 >")),
    Row("owner in a mounted stage", "miss", SHOWN, written("echo 1 >", "chown 7 /o/d; echo 1 >")),
    Row("link in a mounted stage", "miss", SHOWN, written("-s f", "-s d")),
    Row("mode of what is mounted", "miss", SHOWN, written("echo 1 >", "chmod 711 /o; echo 1 >")),
    Row("mounted stage, whole", "last hit", SHOWN.replace("source=/o,", "").replace("/m/", "/m/o/"),
        written("echo 1", "echo  1")),
    Row("mode of a mounted stage's root", "miss", SHOWN.replace("source=/o,", "").replace("/m/", "/m/o/"),
        written("echo 1 >", "chmod 711 /; echo 1 >")),
    Row("mounted file of a stage", "last hit",
        SHOWN.replace("source=/o,", "source=/o/l,").replace("/m/* ", "").replace("/m/f", "/m"),
        written("echo 1", "echo  1")),
    Row("content of a mounted file of a stage", "miss",
        SHOWN.replace("source=/o,", "source=/o/l,").replace("/m/* ", "").replace("/m/f", "/m"),
        written("echo 1", "echo 2")),
    Row("size of a tmpfs", "miss", TMPFS, written("65536", "131072")),
    # -- stages and bases
    Row("stage that makes the same in another way", "last hit", STAGES, written("echo 1", "echo  1")),
    Row("stage that makes something else", "miss", STAGES, written("echo 1", "echo 2")),
    Row("another file of a stage", "last hit", STAGES, written("echo 1 >", "touch /new; echo 1 >")),
    Row("base", "miss", OWN + SEEN, other_base("RUN echo 2 > /b"), other_base("RUN echo 1 > /b")),
    Row("environment of a base", "miss", OWN + SEEN, other_base("ENV B=2"), other_base("ENV B=1")),
    Row("label of a base", "hit", OWN + SEEN, other_base("LABEL b=2"), other_base("LABEL b=1")),
    Row("image that is copied from", "miss", "COPY --from={base}-own /b /b", other_base("RUN echo 2 > /b"),
        other_base("RUN echo 1 > /b")),
    Row("platform of files", "hit", "FROM scratch\nCOPY d /d", told("--platform=linux/arm64")),
    Row("platform of a step", "miss", SEEN, told("--platform=linux/386")),
)  # fmt: skip


@pytest.fixture(scope="module")
def commands() -> Iterator[tuple[Forks, Forks]]:
    with Forks() as one, Forks() as other:
        yield one, other


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A context for each test, made beforehand: nothing is taken from how files look that have just been written."""
    made = []
    for _ in range(len(ROWS) + 10):
        made.append(context := tmp_path_factory.mktemp("row") / "context")
        for name, content in FILES.items():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            (context / name).write_text(content)
        for name, target in LINKS.items():
            (context / name).symlink_to(target)
    return iter(made)


@pytest.fixture
def world(contexts: Iterator[Path], kanifold: Kanifold, busybox: Base) -> Iterator[World]:
    context = next(contexts)

    def answer(asked: Asked) -> Said:
        headers = {key: value for key, value in made.remote.items() if value and key != "body"}
        if asked.headers.get("if-none-match", "") == made.remote["etag"] != "":
            return Said(304, headers)
        return Said(200, headers, made.remote["body"].encode())

    with served(answer) as server:
        made = World(context, busybox.ref, kanifold, f"http://{server.host}")
        yield made


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.replace(" ", "-"))
def test_a_key_is_what_a_step_observes(commands: tuple[Forks, Forks], world: World, tmp_path: Path, row: Row) -> None:
    lines = row.dockerfile if row.dockerfile.startswith("FROM") else f"FROM {{base}}\n{row.dockerfile}"
    (world.context / DOCKERFILE).write_text(lines.replace("{base}", world.base).replace("{url}", world.url) + "\n")
    row.before(world)
    one, other = commands
    first, _ = world.push(one, tmp_path / "first")
    again, found = world.push(one, tmp_path / "again")
    assert again == first
    assert all(found) or "--no-cache" in world.arguments
    row.change(world)
    with ThreadPoolExecutor() as pool:
        fresh = pool.submit(world.build, other, tmp_path / "fresh", "--no-cache", "--root", tmp_path / "fresh-store")
        last, cached = world.push(one, tmp_path / "last")
        assert not any(fresh.result())
    match row.verdict:
        case "hit":
            assert all(cached)
        case "miss":
            assert not cached[-1]
        case "last hit":
            assert cached[-1]
            assert not all(cached)
    assert [last] == image(tmp_path / "fresh")


def image(layout: Path) -> list[str]:
    """The digests of the manifests: of configs and layers too, therefore."""
    return [str(each["digest"]) for each in image_manifests(layout).values()]


ALIKE = """FROM {base} AS b
RUN mkdir -m 711 /o && echo 1 > /o/f && ln /o/f /o/l && ln -s f /o/s && mkfifo /o/p && chown 3:4 /o/f && chmod 4755 /o/f
FROM {base} AS a
COPY d /d
COPY d/g /d/g
COPY . /all
COPY . /
COPY f /f
COPY f /f
WORKDIR /w/x
WORKDIR /d/deep
COPY --link --chmod=600 f /d/deep/
COPY --from=b /o /o/
COPY --from=b / /
ADD f /all/
RUN true
FROM {base}
COPY --from=a /d /x
"""


def test_a_copied_layer_is_the_same_whether_its_files_or_its_directory_is_packed(world: World, tmp_path: Path) -> None:
    """Of the stage ``a`` there are only directories in the store when its layers are first needed as blobs."""
    (world.context / DOCKERFILE).write_text(ALIKE.replace("{base}", world.base))
    os.link(world.context / "f", world.context / "d" / "hard")
    with Forks() as forks:
        fresh = ("--target", "a", "--root", tmp_path / "fresh-store")
        world.build(forks, tmp_path / "first")
        assert all(world.build(forks, tmp_path / "second", "--target", "a"))
        world.build(forks, tmp_path / "fresh", *fresh)
    assert image(tmp_path / "second") == image(tmp_path / "fresh")


def test_a_file_that_is_edited_while_it_is_built_is_what_it_was(world: World, tmp_path: Path) -> None:
    """The edit is made when the file has its key and before it is needed, keeps the size, and is taken back later."""
    (world.context / "f").write_text("one\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        (world.context / DOCKERFILE).write_text(
            f"FROM {world.base} AS a\nCOPY f /f\n"
            f"FROM {world.base}\nRUN nc 127.0.0.1 {server.getsockname()[1]}\nCOPY --from=a /f /f\n"
            "RUN --mount=type=bind,source=f,target=/m cp /m /bound\n"
        )
        output = ("-o", f"type=oci,tar=false,dest={tmp_path / 'out'}")
        build = world.kanifold.start("build", world.context, *output, "--progress", "rawjson", KANIFOLD_NETWORK="host")
        server.settimeout(60)
        step, _ = server.accept()
        assert build.stderr is not None
        steps: dict[int, str] = {}
        for line in build.stderr:
            event = json.loads(line)
            steps |= {each["id"]: each["name"] for each in event.get("steps", ())}
            if event["type"] == "step_finished" and steps[event["step"]] == "COPY f /f":
                break
        (world.context / "f").write_text("two\n")
        step.close()
        _, said = build.communicate(timeout=60)
        assert build.returncode == 0, said
        assert [read_image(tmp_path / "out", "linux/amd64").text(each) for each in ("f", "bound")] == ["one\n"] * 2
        (world.context / "f").write_text("one\n")
        world.kanifold("build", world.context, *output)
    assert [read_image(tmp_path / "out", "linux/amd64").text(each) for each in ("f", "bound")] == ["one\n"] * 2


def test_a_log_of_the_build_may_be_in_its_context(world: World, tmp_path: Path) -> None:
    noise = "i=0; while [ $i -lt 500 ]; do echo $i; i=$((i+1)); done"
    (world.context / DOCKERFILE).write_text(f"FROM {world.base}\nRUN {noise}\nCOPY . /all/\nRUN {noise}\n")
    output = ("-o", f"type=oci,tar=false,dest={tmp_path / 'out'}", "--progress", "plain")
    with (world.context / "log").open("w") as log:
        done = subprocess.run(
            [*world.kanifold.command, "build", world.context, *output],
            cwd=tmp_path, env=world.kanifold.environment(), stdout=log, stderr=log, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, (world.context / "log").read_text()
    kept = read_image(tmp_path / "out", "linux/amd64").text("all/log")
    assert (world.context / "log").read_text().startswith(kept)
    assert kept
