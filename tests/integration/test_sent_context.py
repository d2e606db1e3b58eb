"""Contexts for a node with another disk: what its store lacks is sent once, and images are those of a local build.

Every byte that an executor is sent is recorded.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Base
from msgspec.structs import replace
from protocol_nodes import ROOT, Marked, build

from executor.protocol import BuildOptions, Result
from executor.store.prune import prune, usage
from executor.store.store import open_store
from orchestrator import command, registries
from orchestrator.nodes.command_node import CommandNode
from orchestrator.nodes.local_node import LocalNode
from orchestrator.outputs import CacheOnly
from orchestrator.request import BuildRequest, SecretSource
from orchestrator.results import BuildResult
from orchestrator.view import events
from platforms import host
from platforms.errors import BuildError, KanifoldError
from platforms.parsing import parse

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="executors run on Linux")

EPOCH = ("SOURCE_DATE_EPOCH", "1000000000")


@dataclass
class Pair:
    """This machine with a context, and a node whose executors record what they are sent."""

    here: Path
    there: Path
    mark: Marked
    layout: Path

    @property
    def context(self) -> Path:
        return self.here / "context"

    def node(self) -> CommandNode:
        outside = 'record=$1 && shift && tee -- "$record.$$" | "$@"'
        program = ("sh", "-c", outside, "sh", str(self.there / "sent"), sys.executable, "-P", "-m", "executor")
        given = {"KANIFOLD_ROOT": str(self.there / "store"), "PYTHONPATH": str(ROOT), **self.mark.environment}
        return CommandNode("elsewhere", program, tuple(given.items()))

    def request(self, *platforms: str, context: str = "") -> BuildRequest:
        return BuildRequest(
            context=context or str(self.context),
            platforms=tuple(map(parse, platforms or ("linux/amd64",))),
            outputs=(CacheOnly(),),
            build_args=(EPOCH,),
            build_contexts=(("image", f"oci-layout://{self.layout}"), ("more", str(self.here / "more"))),
            options=BuildOptions(root=str(self.here / "store")),
        )

    def sent(self, request: BuildRequest) -> bytes:
        """Build on the node, and return what its executors were sent."""
        self.build(request)
        return self.record()

    def record(self) -> bytes:
        return b"".join(each.read_bytes() for each in self.there.glob("sent.*"))

    def build(self, request: BuildRequest) -> BuildResult:
        for each in self.there.glob("sent.*"):
            each.unlink()
        return build(request, self.node())

    def locally(self, request: BuildRequest) -> BuildResult:
        """Build on this machine, with another store."""
        return self.locally_in(replace(request, options=replace(request.options, root=str(self.here / "local"))))

    def locally_in(self, request: BuildRequest) -> BuildResult:
        """Build on this machine, in the store of ``request``."""
        seen: list[events.Event] = []
        running = command.run(request, None, (LocalNode(None),), registries.direct, seen.append)
        return asyncio.run(command.interruptible(running))

    def write(self, dockerfile: str, **files: bytes) -> None:
        (self.context / "Dockerfile").write_text(dockerfile)
        for name, data in files.items():
            (self.context / name).write_bytes(data)


@pytest.fixture
def pair(tmp_path: Path, busybox: Base, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    for each in ("here/context", "here/more", "here/home", "there"):
        (tmp_path / each).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "here/home"))
    monkeypatch.delenv("KANIFOLD_ROOT", raising=False)
    mark = Marked()
    yield Pair(tmp_path / "here", tmp_path / "there", mark, busybox.layout)
    assert mark.wait_until_gone(3) == [], "a process is left"


def noise(seed: int, size: int = 2000) -> bytes:
    """Bytes that cannot be compressed."""
    return b"".join(hashlib.sha512(b"%d %d" % (seed, each)).digest() for each in range(size // 64))


def answers(sent: bytes) -> int:
    """The number of requests that were answered."""
    return len({line for line in sent.split(b"\n") if line.startswith(b'{"type":"answer"') and b'"more"' not in line})


def test_a_second_build_after_a_changed_line_sends_one_file(pair: Pair) -> None:
    pair.write("FROM scratch\nCOPY . /app\n")
    source = pair.context / "src"
    source.mkdir()
    for number in range(1000):
        (source / f"{number}.bin").write_bytes(noise(number))
    first = pair.sent(pair.request())
    assert 1000 * 2000 < len(first) < 1000 * 2200, "the content, and little else"
    (source / "7.bin").write_bytes(noise(7) + b"a line\n")
    second = pair.sent(pair.request())
    assert b"a line" in second or len(second) < 80_000
    assert len(second) < 80_000, "one file, and a part of the listing"
    third = pair.sent(pair.request())
    assert len(third) < 4000, "the job, and the digests of the listing"
    for sent, most in ((first, 3), (second, 3), (third, 1)):
        assert answers(sent) <= most, "latency would be paid for each file"


def test_two_platforms_on_one_node_are_sent_it_once(pair: Pair) -> None:
    pair.write("FROM scratch\nCOPY big /big\n", big=noise(1, 3 << 20))
    sent = pair.sent(pair.request("linux/amd64", "linux/arm64"))
    assert 3 << 20 < len(sent) < (3 << 20) + 50_000


def test_only_what_the_dockerfile_reaches_is_sent(pair: Pair) -> None:
    (pair.context / "dir").mkdir()
    (pair.context / "dir" / "in").write_bytes(noise(1))
    (pair.context / "dir" / "last.skip").write_bytes(noise(5, 1 << 20))
    (pair.context / "other").mkdir()
    (pair.context / "other" / "out").write_bytes(noise(2, 1 << 20))
    (pair.context / "link").symlink_to("dir/in")
    pair.write(
        "FROM scratch\nARG NAME=arg\nCOPY link *.json $NAME /app/\nCOPY --exclude=*.skip dir /\n",
        **{
            "a.json": b"{}",
            "arg": noise(3),
            "unused": noise(4, 1 << 20),
        },
    )
    assert len(pair.sent(pair.request())) < 20_000


EVERYTHING = """# syntax=docker/dockerfile:1-labs
FROM image
COPY . /all/
COPY --parents dir/sub/*.txt /parents/
COPY --exclude=*.sh dir /excluded/
COPY li* /links/
COPY --from=more . /more/
ADD archive.tar /unpacked/
COPY --chown=5:6 --chmod=u+x dir/file /
RUN --mount=type=bind,target=/src,source=dir test "$(cat /src/file)" = text && cat /src/sub/a.txt > /ran
RUN --mount=type=bind,from=more,target=/more2 cp /more2/m /ran2
RUN --mount=type=cache,id=seeded,from=more,source=/,target=/seed cp /seed/m /ran3
"""


def test_images_are_those_of_a_local_build(pair: Pair) -> None:
    context = pair.context
    (context / "dir" / "sub").mkdir(parents=True)
    (context / "dir" / "file").write_text("text")
    (context / "dir" / "tool.sh").write_text("#!/bin/sh\n")
    (context / "dir" / "sub" / "a.txt").write_text("a")
    (context / "dir" / "sub" / "empty.txt").write_text("")
    (context / "link").symlink_to("dir/file")
    (context / "lidir").symlink_to("dir/sub")
    (context / "dangling").symlink_to("/nowhere")
    os.link(context / "dir" / "file", context / "dir" / "hard")
    os.mkfifo(context / "dir" / "fifo")
    (context / os.fsdecode(b"name-\xff")).write_text("no UTF-8")
    (context / "ignored").mkdir()
    (context / "ignored" / "out").write_text("out")
    (context / "ignored" / "in").write_text("in")
    (context / ".dockerignore").write_text("ignored/*\n!ignored/in\n")
    (pair.here / "more" / "m").write_text("of the named context")
    pair.write(EVERYTHING)
    with tarfile.open(context / "archive.tar", "w") as archive:
        archive.add(context / "dir" / "file", "in-archive")
    (context / "dir" / "tool.sh").chmod(0o4751)
    (context / "dir").chmod(0o711)
    for number, each in enumerate(sorted(context.rglob("*"))):
        os.utime(each, ns=(0, 1_700_000_000_123_456_789 + number * 10**9), follow_symlinks=False)
    request = pair.request()
    assert pair.build(request).root.digest == pair.locally(request).root.digest


def test_keys_are_those_of_a_local_build(pair: Pair) -> None:
    """What was built in a store without a pipe is found when its files are sent to it."""
    (pair.context / "dir").mkdir()
    (pair.context / "dir" / "file").write_text("text")
    (pair.here / "more" / "m").write_text("more")
    pair.write(
        "FROM image\nCOPY . /all/\nADD dir/f* /\nCOPY --from=more m /\n"
        "RUN --mount=type=bind,target=/src,source=dir cat /src/file > /ran\n"
    )
    request = pair.request()
    there = replace(request, options=replace(request.options, root=str(pair.there / "store")))
    local = pair.locally_in(there)
    seen: list[events.Event] = []
    assert build(request, pair.node(), seen).root.digest == local.root.digest
    told = [each.message for each in seen if isinstance(each, events.FromExecutor)]
    (result,) = (each for each in told if isinstance(each, Result))
    assert (result.ran, result.cached) == (0, 4)


def test_an_archive_keeps_its_owners(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pair.here / "context.tar"
    pair.write("FROM scratch\nCOPY . /\n", file=b"x")
    with tarfile.open(path, "w") as archive:
        for name in ("Dockerfile", "file"):
            member = archive.gettarinfo(str(pair.context / name), name)
            member.uid, member.gid = 7, 8
            with open(pair.context / name, "rb") as file:
                archive.addfile(member, file)
    digests = set()
    for built in (pair.build, pair.locally):
        with path.open("rb") as file:
            os.dup2(file.fileno(), 0)
            digests.add(built(pair.request(context="-")).root.digest)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [("COPY none /", '"/none": not found'), ("COPY ignored /", '"/ignored": not found'), ("COPY [ /", "no pattern")],
)
def test_what_is_not_there_is_said_as_locally(pair: Pair, line: str, message: str) -> None:
    pair.write(f"FROM scratch\nCOPY file /\n{line}\n", file=b"x", ignored=b"x")
    (pair.context / ".dockerignore").write_text("ignored\n")
    found = []
    for built in (pair.build, pair.locally):
        with pytest.raises(BuildError, match=message) as caught:
            built(pair.request())
        found.append([replace(each.problem, where=None) for each in caught.value.troubles])  # type: ignore[attr-defined]
        assert caught.value.troubles[0].problem.where.line == 3  # type: ignore[attr-defined]
    assert found[0] == found[1]


def test_a_file_that_cannot_be_read_is_named_here_alone(pair: Pair) -> None:
    pair.write("FROM scratch\nCOPY fine /\nCOPY gone /\n", fine=b"x", gone=b"x")
    (pair.context / "gone").unlink()
    (pair.context / "gone").symlink_to("loop")
    (pair.context / "loop").symlink_to("gone")
    with pytest.raises(KanifoldError) as caught:
        pair.build(pair.request())
    assert caught.value.troubles[0].problem.where.line == 3  # type: ignore[attr-defined]
    assert str(pair.here).encode() not in pair.record()


def test_the_build_platform_is_the_jobs(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac with an arm64 processor, say: what a Dockerfile calls the build platform is that of the node."""
    pair.write("FROM image\nARG BUILDPLATFORM\nARG TARGETPLATFORM\nRUN test $BUILDPLATFORM = $TARGETPLATFORM\n")
    own = host.default_platform()
    monkeypatch.setattr("platforms.host.default_platform", lambda: parse("linux/riscv64"))
    pair.build(pair.request(str(own)))


def test_a_layout_is_sent_once_and_its_files_one_by_one(pair: Pair) -> None:
    pair.write("FROM image\nCOPY Dockerfile /\n")
    first = len(pair.sent(pair.request()))
    assert first > 400_000, "the base"
    assert len(pair.sent(pair.request())) < 10_000, "what is in its store is sent again"


def test_what_was_removed_there_is_sent_again(pair: Pair) -> None:
    pair.write("FROM scratch\nCOPY big /big\n", big=noise(1, 1 << 20))
    pair.build(pair.request())
    with open_store(str(pair.there / "store")) as store:
        kinds = {each.kind for each in usage(store)}
        assert "blob" in kinds
        prune(store, all=True)
        assert {each.kind for each in usage(store)} <= {"partial"}
    assert len(pair.sent(pair.request())) > 1 << 20


def test_a_secret_is_nowhere_on_the_node(pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither its value nor that of an agent's reply is left in any file, and its process has ended."""
    word = noise(9, 64).hex()
    (pair.here / "word").write_text(word)
    monkeypatch.setenv("TMPDIR", str(pair.there))
    pair.write(
        "FROM image\nCOPY Dockerfile /\n"
        "RUN --mount=type=secret,id=word --mount=type=ssh test -S $SSH_AUTH_SOCK && wc -c < /run/secrets/word > /size\n"
        "RUN --mount=type=secret,id=word,env=WORD echo $WORD | wc -c >> /size && echo ${WORD}\n"
    )
    agent = tmp_path / "agent"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(agent))
        listening.listen()
        request = replace(
            pair.request(), secrets=(SecretSource("word", str(pair.here / "word")),), agents={"default": str(agent)}
        )
        seen: list[events.Event] = []
        build(request, pair.node(), seen)
    assert word.encode() in pair.record(), "the step did not get it"
    kept = [each for each in (tmp_path / "there").rglob("*") if each.is_file() and not each.name.startswith("sent.")]
    assert len(kept) > 10
    assert [each for each in kept if word.encode() in each.read_bytes()] == []
    assert [each for each in pair.here.rglob("*") if each.is_file() and word.encode() in each.read_bytes()] == [
        pair.here / "word"
    ]
    assert word not in str(seen), "it was shown"
