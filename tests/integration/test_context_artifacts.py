"""Content of contexts that executors elsewhere get from a registry, or a git repository, rather than be sent it."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import git_server
import msgspec
import pytest
from git_server import Repository
from registry_server import Asked, MemoryRegistry, Said, Served, served

from executor import protocol
from executor.protocol import ContextPattern, DirectoryContext, GitOrigin, PickedFiles, SentContext
from executor.registry.client import Client
from executor.registry.registry_session import TransferOptions
from executor.retry import RetryPolicy
from executor.solver.context_content import ContextSender
from executor.solver.lazy import ready
from executor.solver.lifetime import Cancellation, ScratchSpace
from executor.solver.sent_context import SentTree
from executor.store.store import Store, open_store
from orchestrator import context_artifacts, contexts
from orchestrator.context_artifacts import ContextArtifacts
from orchestrator.contexts import ContextFiles, FetchOptions
from orchestrator.loans import check_loan
from orchestrator.sent_contexts import SentContexts
from orchestrator.view import events
from platforms.errors import ProtocolError, RegistryError

EVERYTHING = ContextPattern(b"/", wildcards=False)
FILES = {"a": bytes(3000), "b/c": b"c" * 5000, "b/d": b"d"}
LARGE = 4000
"""Less than all of ``FILES``, more than none."""
ONCE = TransferOptions(retry=RetryPolicy(attempts=1, connect_attempts=1))


@dataclass
class Orchestrator:
    """The orchestrator's end: a context, and what it answers."""

    sent: SentContexts
    context: DirectoryContext
    repository: str
    asked: list[str] = field(default_factory=list)
    told: list[protocol.Message] = field(default_factory=list)

    def send(self, message: protocol.Message) -> None:
        self.told.append(message)

    def ask(self, question: protocol.Question) -> bytes | None:
        self.asked.append(question.kind)
        match question:
            case protocol.AskContext(_, patterns):
                return self.sent.listing(self.context, patterns)
            case protocol.AskContextArtifact(_, listing, picked):
                found = self.sent.artifact(self.context, listing, picked, self.repository)
                return None if found is None else msgspec.json.encode(found)
            case _:
                return None

    def ask_into(self, sink: Callable[[bytes], object], question: protocol.Question) -> bool:
        self.asked.append(question.kind)
        match question:
            case protocol.AskContextParts(_, name, parts):
                self.sent.parts(self.context, name, parts, lambda block: sink(bytes(block)))
            case protocol.AskContextFiles(_, name, picked):
                self.sent.files(self.context, name, picked, lambda block: sink(bytes(block)))
            case _:
                raise AssertionError(question)
        return True

    @property
    def warnings(self) -> list[str]:
        return [each.problem.what for each in self.told if isinstance(each, protocol.BuildWarning)]


@dataclass
class World:
    """A registry, and a context of which executors receive files."""

    server: Served
    registry: MemoryRegistry
    orchestrator: Orchestrator
    client: Client
    place: Path
    emitted: list[events.Event]

    def receive(self, *, large: int = LARGE, git: GitOrigin | None = None, artifacts: bool = True) -> dict[str, bytes]:
        """Return the files that another executor receives, with a store of its own."""
        number = len(list(self.place.glob("far-*")))
        scratch = self.place / f"scratch-{number}"
        scratch.mkdir()
        with open_store(str(self.place / f"far-{number}")) as far:
            sender = ContextSender(
                SentContext("", large, git, artifacts),
                "build",
                cast("Any", self.orchestrator),
                far,
                Cancellation(),
                ready(self.client),
                ScratchSpace(str(scratch)),
            )
            return contents(SentTree(sender, lambda: ()))


def contents(tree: SentTree) -> dict[str, bytes]:
    """Return the content of all files, after it was fetched."""
    tree.expect(EVERYTHING)
    found, waiting = [], [b""]
    while waiting:
        for each in tree.entries(waiting.pop()):
            if each.digest:
                found.append(each)
            elif each.size == 0 and each.kind.name == "DIRECTORY":
                waiting.append(each.path)
    tree.fetch(found)
    return {os.fsdecode(each.path): Path(os.fsdecode(each.source)).read_bytes() for each in found}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "store")) as opened:
        yield opened


@pytest.fixture
def fault() -> list[Callable[[Asked], object]]:
    """What the registry does first, if there is anything."""
    return []


@pytest.fixture
def world(tmp_path: Path, store: Store, fault: list[Callable[[Asked], object]]) -> Iterator[World]:
    place = tmp_path / "context"
    for name, data in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    registry = MemoryRegistry(lambda asked: fault[0](asked) if fault else ...)
    emitted: list[events.Event] = []
    with served(registry) as server, Client(options=ONCE) as client:
        sent = SentContexts(store, ContextArtifacts(store, client, emitted.append))
        repository = f"{server.url.removeprefix('http://')}/team/contexts"
        orchestrator = Orchestrator(sent, DirectoryContext("", str(place)), repository)
        yield World(server, registry, orchestrator, client, tmp_path, emitted)
        sent.close()


def warned(emitted: list[events.Event]) -> list[str]:
    return [f"{each.problem.what}: {each.problem.why}" for each in emitted if isinstance(each, events.WarningRaised)]


# -- by way of a registry


def test_large_content_is_pushed_once_for_all_executors_and_deleted_afterwards(world: World) -> None:
    assert world.receive() == world.receive() == FILES
    assert world.orchestrator.asked == ["context", "context-parts", "context-artifact"] * 2
    (manifest,) = world.registry.manifests.values()
    document = msgspec.json.decode(manifest[1])
    assert document["config"]["mediaType"] == context_artifacts.CONFIG
    assert [each["mediaType"] for each in document["layers"]] == [context_artifacts.BUNDLE]
    assert len(world.server.seen("PUT", "/blobs/uploads/")) == 2  # bundle, and config
    world.orchestrator.sent.close()
    assert not world.registry.manifests
    assert not warned(world.emitted)


def test_the_artifact_depends_on_the_files_only(world: World, store: Store) -> None:
    def digest() -> str:
        world.receive()
        (name,) = {name for _, name in world.registry.manifests}
        world.orchestrator.sent.close()
        return name

    first = digest()
    world.orchestrator.sent = SentContexts(store, ContextArtifacts(store, world.client, world.emitted.append))
    os.utime(world.place / "context" / "a", (1, 1))
    assert digest() == first


@pytest.mark.parametrize(("large", "artifacts"), [(1 << 20, True), (0, True), (LARGE, False)])
def test_other_content_is_sent(world: World, large: int, artifacts: bool) -> None:
    assert world.receive(large=large, artifacts=artifacts) == FILES
    assert world.orchestrator.asked == ["context", "context-parts", "context-files"]
    assert not world.server.seen("POST")


def test_a_registry_that_refuses_is_not_asked_again(world: World, fault: list[Callable[[Asked], object]]) -> None:
    fault.append(lambda asked: Said(403) if asked.method == "POST" else ...)
    assert world.receive() == world.receive() == FILES
    assert len(world.server.seen("POST")) == 1
    (words,) = warned(world.emitted)
    assert "not sent by way of" in words and "/team/contexts" in words and "403" in words


@pytest.mark.parametrize(
    "answer", [Said(404), Said(500), Said(200, {}, b"\0" * 50)], ids=["nothing", "failing", "something else"]
)
def test_what_an_executor_cannot_read_there_is_sent(
    world: World, fault: list[Callable[[Asked], object]], answer: Said
) -> None:
    fault.append(lambda asked: answer if asked.method == "GET" and "/blobs/" in asked.path else ...)
    assert world.receive() == FILES
    assert world.orchestrator.asked[-2:] == ["context-artifact", "context-files"]
    assert world.orchestrator.warnings == ["the build context is sent by the orchestrator, not by the registry"]


def test_a_bundle_of_other_files_is_not_used(world: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    world.receive()
    ((_, pushed),) = world.orchestrator.sent._artifacts._found.items()  # type: ignore[union-attr]
    world.orchestrator.sent.close()
    (world.place / "context" / "a").write_bytes(b"1" * 3000)
    made = ContextArtifacts(store, world.client, world.emitted.append)
    monkeypatch.setattr(made, "get", lambda *_: pushed.artifact)
    world.orchestrator.sent = SentContexts(store, made)
    assert world.receive() == {**FILES, "a": b"1" * 3000}
    assert world.orchestrator.asked[-1] == "context-files"
    assert len(world.orchestrator.warnings) == 1


def test_a_registry_that_keeps_what_was_pushed_is_named(world: World, fault: list[Callable[[Asked], object]]) -> None:
    fault.append(lambda asked: Said(405) if asked.method == "DELETE" else ...)
    world.receive()
    world.orchestrator.sent.close()
    (words,) = warned(world.emitted)
    assert "stays in the registry" in words and "/team/contexts@sha256:" in words


def test_artifacts_are_deleted_while_another_one_is_pushed(
    world: World, fault: list[Callable[[Asked], object]]
) -> None:
    """As the time for it is short after an interruption; and that one when it has been pushed."""
    world.receive()
    pushing, deleted = threading.Event(), threading.Event()

    def respond(asked: Asked) -> object:
        if asked.method == "DELETE":
            deleted.set()
        elif asked.method == "POST":
            pushing.set()
            deleted.wait(20)
        return ...

    fault.append(respond)
    orchestrator = world.orchestrator
    name = next(iter(orchestrator.sent._listings))[1]
    which = (PickedFiles(0, b"\x02"),)
    asking = (orchestrator.context, name, which, orchestrator.repository)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(orchestrator.sent.artifact, *asking)
        assert pushing.wait(20)
        orchestrator.sent.close()
        assert deleted.is_set()
        other.result()
    assert len(world.server.seen("DELETE")) == 2
    assert not world.registry.manifests
    assert not warned(world.emitted)


def test_a_disk_without_room_for_an_artifact_costs_that_way_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_artifacts, "open", lambda *_: io.FileIO("/dev/full", "w"), raising=False)
    assert world.receive() == world.receive() == FILES
    assert world.orchestrator.asked[-1] == "context-files"
    (words,) = warned(world.emitted)
    assert "not sent by way of" in words and "no space left" in words


def test_files_that_are_asked_for_twice_are_refused(world: World) -> None:
    """What goes to the disk and to a registry is bounded by the context, whatever an executor asks."""
    orchestrator = world.orchestrator
    orchestrator.sent.listing(orchestrator.context, (EVERYTHING,))
    name = next(iter(orchestrator.sent._listings))[1]
    twice = (PickedFiles(0, b"\xff"),) * 2
    with pytest.raises(ProtocolError, match="twice"):
        orchestrator.sent.artifact(orchestrator.context, name, twice, orchestrator.repository)
    assert not world.server.seen("POST")


def test_only_reading_is_lent_for_the_repository_of_contexts() -> None:
    job = protocol.Job(protocol.VERSION, "linux/amd64", b"", push=("registry.example.com/app",))
    where = "registry.example.com", "contexts"
    pull, push = ("repository:contexts:pull",), ("repository:contexts:pull,push",)
    assert check_loan(job, *where, pull, "registry.example.com/contexts")
    assert not check_loan(job, *where, pull)
    with pytest.raises(RegistryError):
        check_loan(job, *where, push, "registry.example.com/contexts")


# -- of a git repository


@pytest.fixture
def commit(world: World) -> Iterator[tuple[Served, GitOrigin]]:
    """The files as a commit on a server, which is the context."""
    repository = Repository.make(world.place / "git" / "repository.git")
    repository.commit(dict(FILES))
    with git_server.serving(world.place / "git") as server:
        found = fetched(world, f"{server.url}/repository.git/.git")
        world.orchestrator.context = DirectoryContext("", found.directory, git=found.git)
        assert found.git is not None
        server.asked.clear()
        yield server, found.git


def fetched(world: World, url: str) -> ContextFiles:
    scratch = world.place / "fetched"
    scratch.mkdir(exist_ok=True)
    return contexts.main(url, FetchOptions(str(scratch)))


def test_a_commit_is_fetched_by_the_executor(world: World, commit: tuple[Served, GitOrigin]) -> None:
    server, origin = commit
    assert world.receive(git=origin) == FILES
    assert world.orchestrator.asked[:2] == ["context", "context-parts"]
    assert not {"context-files", "context-artifact"} & set(world.orchestrator.asked)
    assert server.seen("POST")


def test_what_the_commit_does_not_have_is_sent(world: World, commit: tuple[Served, GitOrigin]) -> None:
    (Path(world.orchestrator.context.path) / "b/d").write_bytes(b"x")
    assert world.receive(git=commit[1]) == {**FILES, "b/d": b"x"}
    assert world.orchestrator.asked[-1] == "context-files"
    assert not world.orchestrator.warnings


def test_a_small_commit_is_sent(world: World, commit: tuple[Served, GitOrigin]) -> None:
    assert world.receive(git=commit[1], large=1 << 20) == FILES
    assert not commit[0].asked


def test_without_git_it_is_sent_silently(
    world: World, commit: tuple[Served, GitOrigin], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert world.receive(git=commit[1], artifacts=False) == FILES
    assert world.orchestrator.asked[-1] == "context-files"
    assert not world.orchestrator.warnings


def test_a_server_that_the_executor_cannot_reach_is_named(world: World, commit: tuple[Served, GitOrigin]) -> None:
    away = msgspec.structs.replace(commit[1], address="http://127.0.0.1:9/repository.git")
    assert world.receive(git=away, artifacts=False) == FILES
    (words,) = world.orchestrator.warnings
    assert "cannot be fetched on the node" in words


def test_a_server_that_says_nothing_costs_a_moment(
    world: World, commit: tuple[Served, GitOrigin], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executor.solver.fetched._ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/repository.git"
        away = msgspec.structs.replace(commit[1], address=address)
        assert world.receive(git=away, artifacts=False) == FILES
    assert len(world.orchestrator.warnings) == 1


def test_a_password_in_the_address_stays_here(world: World, commit: tuple[Served, GitOrigin]) -> None:
    url = commit[1].address.replace("http://", "http://user:secret@")
    assert fetched(world, url).git is None
