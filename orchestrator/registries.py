"""Registries, as an orchestrator asks them: on Linux through a process of its own.

What speaks HTTP takes as long to load as all else that a build loads before it begins, so that is done meanwhile, in
a process that comes out of the nursery. Who the user is to a registry it asks, as executors do. It ends when its pipe
does.

Questions and answers are frames: their length in four bytes, most significant first, and as much MessagePack.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, BinaryIO, Final, Protocol

import msgspec

from executor.image.manifest import Descriptor, Index, Manifest, parse
from executor.registry.auth import Credential, Keychain, anonymous
from executor.registry.config import RegistrySettings
from executor.registry.notices import Notice, Tell
from executor.registry.reference import Reference
from platforms import decoding
from platforms.descriptors import keep_only, write_all
from platforms.errors import (
    EnvironmentUnfit,
    Interrupted,
    KanifoldError,
    Problem,
    ProtocolError,
    RegistryError,
    sayable,
)

_AT_ONCE: Final = 32
"""Questions that are answered at once; further ones wait."""


class Registry(Protocol):
    """What is asked of registries; ``executor.registry.client.Client`` says what each of these does."""

    def resolve(self, reference: Reference) -> Descriptor: ...
    def has_manifest(self, reference: Reference) -> Descriptor | None: ...
    def manifest(self, reference: Reference) -> tuple[Manifest | Index, bytes, Descriptor]: ...
    def read_blob(self, reference: Reference, descriptor: Descriptor, limit: int) -> bytes: ...
    def check_push(self, reference: Reference) -> None: ...
    def put_manifest(self, reference: Reference, data: bytes, media_type: str) -> Descriptor: ...
    def learned(self) -> RegistrySettings: ...
    def close(self) -> None: ...


Connect = Callable[[RegistrySettings, Keychain, Tell], Registry]
"""How a build takes up its registries, once: ``RegistryProcess.connect``, or ``direct`` where there is none."""


class _Begin(msgspec.Struct, frozen=True, tag=True):
    settings: RegistrySettings


class _Here(msgspec.Struct, frozen=True, tag=True):
    """First word of the process: its id, or ``why`` there is none."""

    pid: int = 0
    why: str = ""


class _Question(msgspec.Struct, frozen=True, tag=True):
    number: int
    call: str
    arguments: msgspec.Raw


class _Answer(msgspec.Struct, frozen=True, tag=True):
    number: int
    value: msgspec.Raw = msgspec.Raw(b"\xc0")
    """MessagePack; nil where there is a ``problem``."""
    problem: Problem | None = None


class _Notice(msgspec.Struct, frozen=True, tag=True):
    """Something that the client says while it works."""

    notice: Notice


class _Who(msgspec.Struct, frozen=True, tag=True):
    """The other way round: the credential for ``name`` is wanted, in an ``_Answer`` with this number."""

    number: int
    name: str


_Message = _Here | _Begin | _Question | _Answer | _Notice | _Who
_MESSAGE: Final[msgspec.msgpack.Decoder[_Message]] = msgspec.msgpack.Decoder(_Message)
_CREDENTIAL: Final[msgspec.msgpack.Decoder[Credential | None]] = msgspec.msgpack.Decoder(Credential | None)
_DESCRIPTOR: Final[msgspec.msgpack.Decoder[Descriptor]] = msgspec.msgpack.Decoder(Descriptor)
_REFERENCE: Final[msgspec.msgpack.Decoder[tuple[Reference]]] = msgspec.msgpack.Decoder(tuple[Reference])
_CALLS: Final[dict[str, tuple[msgspec.msgpack.Decoder[Any], msgspec.msgpack.Decoder[Any]]]] = {
    "resolve": (_REFERENCE, _DESCRIPTOR),
    "has_manifest": (_REFERENCE, msgspec.msgpack.Decoder(Descriptor | None)),
    "manifest": (_REFERENCE, msgspec.msgpack.Decoder(tuple[bytes, Descriptor])),
    "read_blob": (msgspec.msgpack.Decoder(tuple[Reference, Descriptor, int]), msgspec.msgpack.Decoder(bytes)),
    "check_push": (_REFERENCE, msgspec.msgpack.Decoder(None)),
    "put_manifest": (msgspec.msgpack.Decoder(tuple[Reference, bytes, str]), _DESCRIPTOR),
    "learned": (msgspec.msgpack.Decoder(tuple[()]), msgspec.msgpack.Decoder(RegistrySettings)),
}
"""What each call takes and gives. A document is not sent, only its bytes."""


class _Line:
    """One end of the pipes. Any thread may write; one reads."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._in: BinaryIO = os.fdopen(incoming, "rb")
        self._out = outgoing
        self._writing = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[msgspec.Raw]] = {}
        self._why: KanifoldError | None = None

    def send(self, message: _Message) -> None:
        """Say ``message``, unless the other end is gone, or this one has come to its ``end``."""
        with self._writing:
            if self._why is None:
                _write(self._out, message)

    def ask(self, question: Callable[[int], _Question | _Who]) -> msgspec.Raw:
        """The answer to the ``question`` of a number. Raises what it says is wrong, or why there is none."""
        number, found = next(self._numbers), Future[msgspec.Raw]()
        self._waiting[number] = found
        self.send(question(number))
        if self._why is not None:
            raise self._why
        return found.result()

    def answer(self, number: int, value: Callable[[], object]) -> None:
        """Say what ``value`` returns, or what is wrong with it."""
        try:
            answer = _Answer(number, msgspec.Raw(msgspec.msgpack.encode(value())))
        except KanifoldError as error:
            answer = _Answer(number, problem=sayable(error.problem))
        except BaseException as error:
            sys.excepthook(*sys.exc_info())
            why = type(error).__name__
            answer = _Answer(number, problem=Problem("ProtocolError", "cannot answer a question of registries", why))
        self.send(answer)

    def messages(self) -> Iterator[_Here | _Begin | _Question | _Notice | _Who]:
        """What is not an answer to us, until the other end closes, or talks nonsense."""
        while len(head := self._in.read(4)) == 4:
            data = self._in.read(size := int.from_bytes(head, "big"))
            if len(data) < size:
                return
            try:
                message = decoding.decode(_MESSAGE, data)
            except msgspec.DecodeError:
                return
            if not isinstance(message, _Answer):
                yield message
            elif (found := self._waiting.pop(message.number, None)) is None:
                continue  # who asked has heard that this is the end
            elif message.problem is None:
                found.set_result(message.value)
            else:
                found.set_exception(KanifoldError.of(message.problem))

    def end(self, why: KanifoldError) -> None:
        """Say nothing more. Whoever waits for an answer, or will, hears ``why``, or what an earlier end said."""
        with self._writing:
            if self._why is None:
                self._why = why
                os.close(self._out)
        for number in list(self._waiting):
            if (found := self._waiting.pop(number, None)) is not None:
                found.set_exception(self._why)

    def close(self) -> None:
        """Hear nothing more, after the ``end``."""
        self._in.close()


def _write(fd: int, message: _Message) -> None:
    data = msgspec.msgpack.encode(message)
    with contextlib.suppress(BrokenPipeError):
        write_all(fd, len(data).to_bytes(4, "big") + data)


class RegistryProcess:
    """The process, seen from outside: a ``Registry`` from ``connect`` on, for any thread."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        self.pid = 0
        """Of the process, once it has said so."""
        self._listener = threading.Thread(target=self._listen, name="registries", daemon=True)
        self._keychain: Keychain = anonymous
        self._tell: Tell | None = None
        self._closed = False

    def connect(self, settings: RegistrySettings, keychain: Keychain, tell: Tell | None = None) -> RegistryProcess:
        """Say which registries, and be the user whom ``keychain`` knows; ``tell`` hears of waits and remarks."""
        self._keychain = keychain
        self._tell = tell
        self._line.send(_Begin(settings))
        self._listener.start()
        return self

    def _listen(self) -> None:
        error: KanifoldError = ProtocolError("cannot speak to registries", why="the process that does has died")
        lookups: list[threading.Thread] = []
        for message in self._line.messages():
            match message:
                case _Here():
                    self.pid = message.pid
                    if message.why:
                        error = EnvironmentUnfit("cannot speak to registries", why=message.why)
                case _Notice(notice):
                    if self._tell is not None:
                        self._tell(notice)
                case _Who():
                    # In a thread of its own: a credential helper takes its time, and may ask the user.
                    look = partial(self._keychain, message.name)
                    lookups.append(threading.Thread(target=self._line.answer, args=(message.number, look)))
                    lookups[-1].start()
                case _:
                    break
        self._line.end(error)
        for thread in lookups:
            thread.join()

    def close(self) -> None:
        """End it; questions that are waiting are ``Interrupted``. Waits for credential helpers, which have a minute."""
        if self._closed:
            return
        self._closed = True
        self._line.end(Interrupted("the transfer was stopped"))
        if self._listener.ident is None:
            self._listen()
        else:
            self._listener.join()
        self._line.close()

    def _ask(self, call: str, *arguments: object) -> Any:
        try:
            given = msgspec.Raw(msgspec.msgpack.encode(arguments))
        except (UnicodeEncodeError, OverflowError) as error:  # of something that a registry said
            raise RegistryError("cannot ask a registry for this", why=str(error)) from error
        return decoding.decode(_CALLS[call][1], self._line.ask(lambda number: _Question(number, call, given)))

    def resolve(self, reference: Reference) -> Descriptor:
        found: Descriptor = self._ask("resolve", reference)
        return found

    def has_manifest(self, reference: Reference) -> Descriptor | None:
        found: Descriptor | None = self._ask("has_manifest", reference)
        return found

    def manifest(self, reference: Reference) -> tuple[Manifest | Index, bytes, Descriptor]:
        data, descriptor = self._ask("manifest", reference)
        return parse(data, descriptor.media_type), data, descriptor

    def read_blob(self, reference: Reference, descriptor: Descriptor, limit: int) -> bytes:
        plain = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)
        found: bytes = self._ask("read_blob", reference, plain, limit)
        return found

    def check_push(self, reference: Reference) -> None:
        self._ask("check_push", reference)

    def put_manifest(self, reference: Reference, data: bytes, media_type: str) -> Descriptor:
        found: Descriptor = self._ask("put_manifest", reference, data, media_type)
        return found

    def learned(self) -> RegistrySettings:
        found: RegistrySettings = self._ask("learned")
        return found


def prepared() -> tuple[RegistryProcess, tuple[int, int]]:
    """Registries, and the descriptors that whoever is to ``serve`` has to have."""
    incoming, ours = os.pipe2(os.O_CLOEXEC)
    theirs, outgoing = os.pipe2(os.O_CLOEXEC)
    return RegistryProcess(_Line(theirs, ours)), (incoming, outgoing)


def direct(settings: RegistrySettings, keychain: Keychain, tell: Tell | None = None) -> Registry:
    """Registries, asked by this process."""
    from executor.registry.client import Client

    return Client(settings, keychain, tell=tell)


def refuse(outgoing: int, why: str) -> None:
    """Say on behalf of who would ``serve`` why nobody does."""
    _write(outgoing, _Here(why=why))


def serve(incoming: int, outgoing: int) -> int:
    """Answer what a ``RegistryProcess`` asks, until it closes."""
    keep_only(incoming, outgoing)

    from concurrent.futures import ThreadPoolExecutor

    from executor.registry.client import Client

    gc.enable()  # which it is not while this is loaded
    line = _Line(incoming, outgoing)
    line.send(_Here(os.getpid()))
    client: Client | None = None

    def keychain(name: str) -> Credential | None:
        return decoding.decode(_CREDENTIAL, line.ask(lambda number: _Who(number, name)))

    def value(question: _Question) -> object:
        arguments = decoding.decode(_CALLS[question.call][0], question.arguments)
        found = getattr(client, question.call)(*arguments)
        return found[1:] if question.call == "manifest" else found

    pool = ThreadPoolExecutor(_AT_ONCE, "question")
    for message in line.messages():
        match message:
            case _Begin():
                client = Client(message.settings, keychain, tell=lambda notice: line.send(_Notice(notice)))
            case _Question():
                pool.submit(line.answer, message.number, partial(value, message))
            case _:
                break
    line.close()
    return 0
