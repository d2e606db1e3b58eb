"""The registry client of an orchestrator: on Linux in a separate process, ``kanifold-http``.

Loading httpx takes as long as the rest of a cached build, so another process does it concurrently. It is forked by the
prefork server, sends requests for the orchestrator, requests credentials from it, as executors do, and ends when its
pipe is closed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from executor.image.manifest import Descriptor, Index, Manifest, parse
from executor.registry.auth import Credential, Keychain, Loan, anonymous
from executor.registry.notices import Notice, Tell
from executor.registry.reference import Reference
from executor.registry.registry_settings import RegistrySettings
from orchestrator import rpc
from platforms import framing
from platforms.descriptors import keep_only, write_all
from platforms.errors import Interrupted, KanifoldError, Problem, ProtocolError

_CONCURRENT: Final = 32
"""Maximum number of concurrent calls; further ones wait."""


class RegistryCalls(Protocol):
    """The methods of ``executor.registry.client.Client`` that an orchestrator uses."""

    def resolve(self, reference: Reference) -> Descriptor: ...
    def has_manifest(self, reference: Reference) -> Descriptor | None: ...
    def read_manifest(self, reference: Reference) -> tuple[bytes, Descriptor]: ...
    def read_blob(self, reference: Reference, descriptor: Descriptor, limit: int) -> bytes: ...
    def check_push(self, reference: Reference) -> None: ...
    def put_manifest(self, reference: Reference, data: bytes, media_type: str) -> Descriptor: ...
    def push_artifact(self, reference: Reference, config_type: str, layer: Descriptor, path: str) -> Descriptor: ...
    def delete_manifest(self, reference: Reference) -> None: ...
    def probed_settings(self) -> RegistrySettings: ...
    def lend(self, registry: str, repository: str, scopes: tuple[str, ...], fresh: bool) -> Loan | None: ...


class Registry(RegistryCalls, Protocol):
    """A registry client, to be closed."""

    def manifest(self, reference: Reference) -> tuple[Manifest | Index, bytes, Descriptor]: ...
    def close(self) -> None: ...


Connect = Callable[[RegistrySettings, Keychain, Tell], Registry]
"""Makes the registry client of a session: ``RegistryProcess.connect``, or ``direct``."""


class _Credentials(Protocol):
    """The calls from the process to the orchestrator."""

    def credential(self, name: str) -> Credential | None: ...


class _Started(msgspec.Struct, frozen=True, tag=True):
    """The process's first message."""

    pid: int


class _RequestFailed(msgspec.Struct, frozen=True, tag=True):
    """In place of the first message: why the process could not be started."""

    problem: Problem


class _Begin(msgspec.Struct, frozen=True, tag=True):
    """The orchestrator's first message."""

    settings: RegistrySettings


class _Notice(msgspec.Struct, frozen=True, tag=True):
    """A notice of the registry client."""

    notice: Notice


_Message = _Started | _RequestFailed | _Begin | _Notice | rpc.Call | rpc.Reply
_MESSAGE: Final[msgspec.json.Decoder[_Message]] = msgspec.json.Decoder(_Message)
_CALLS, _CREDENTIALS = (
    {
        each.name: rpc.Method(
            each.name, each.parameters, msgspec.json.Decoder(each.arguments), msgspec.json.Decoder(each.result)
        )
        for each in rpc.signatures(interface)
    }
    for interface in (RegistryCalls, _Credentials)
)


class RegistryProcess:
    """The orchestrator's end of the process: ``connect`` once, then call the ``Registry`` from any thread.

    ``incoming`` and ``outgoing`` are the descriptors that ``serve`` or ``refuse`` has the other ends of.
    """

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._channel = rpc.Channel(incoming, outgoing, _MESSAGE, "the process that asks registries")
        self.pid = 0
        """The process id, once it was received."""
        self._reading = threading.Thread(target=self._read, name="registries", daemon=True)
        self._keychain: Keychain = anonymous
        self._tell: Tell | None = None
        self._closed = False

    def connect(self, settings: RegistrySettings, keychain: Keychain, tell: Tell | None = None) -> Registry:
        """Return a client with these ``settings`` and the credentials of ``keychain``.

        ``tell`` is called with notices, on a thread of this object.
        """
        self._keychain = keychain
        self._tell = tell
        self._channel.send(_Begin(settings))
        self._reading.start()
        registry: Registry = rpc.stub(_CALLS, self._channel.call, manifest=self.manifest, close=self.close)
        return registry

    def manifest(self, reference: Reference) -> tuple[Manifest | Index, bytes, Descriptor]:
        """Return the manifest or index of ``reference``. Only its bytes are sent over the pipe."""
        data, descriptor = self._channel.call(_CALLS["read_manifest"], reference)
        return parse(data, descriptor.media_type), data, descriptor

    def credential(self, name: str) -> Credential | None:
        """Return the credential for ``name``; called by the process."""
        return self._keychain(name)

    def _read(self) -> None:
        error: KanifoldError = ProtocolError("cannot speak to registries", why="the process that does has died")
        lookups: list[threading.Thread] = []
        for message in self._channel.messages():
            match message:
                case _Started(pid):
                    self.pid = pid
                case _RequestFailed(problem):
                    error = KanifoldError.of(problem)
                case _Notice(notice):
                    if self._tell is not None:
                        self._tell(notice)
                case rpc.Call():
                    # On another thread: a credential helper may take long, or ask the user.
                    arguments = (_CREDENTIALS, self, message)
                    lookups.append(threading.Thread(target=self._channel.answer, args=arguments))
                    lookups[-1].start()
                case _:
                    break
        self._channel.end(error)
        for thread in lookups:
            thread.join()

    def close(self) -> None:
        """End the process; waiting calls raise ``Interrupted``. Waits for credential helpers, which have a minute."""
        if self._closed:
            return
        self._closed = True
        self._channel.end(Interrupted("the transfer was stopped"))
        if self._reading.ident is None:
            self._read()
        else:
            self._reading.join()
        self._channel.close()


def prepared() -> tuple[RegistryProcess, tuple[int, int]]:
    """Return the orchestrator's end, and the descriptors of the other: for reading and for writing."""
    incoming, ours = os.pipe2(os.O_CLOEXEC)
    theirs, outgoing = os.pipe2(os.O_CLOEXEC)
    return RegistryProcess(theirs, ours), (incoming, outgoing)


def direct(settings: RegistrySettings, keychain: Keychain, tell: Tell | None = None) -> Registry:
    """Return a client in this process, where there can be no other."""
    from executor.registry.client import Client

    return Client(settings, keychain, tell=tell)


def refuse(outgoing: int, problem: Problem) -> None:
    """Report to the orchestrator that the process could not be started."""
    with contextlib.suppress(BrokenPipeError):
        write_all(outgoing, framing.encode(_RequestFailed(problem)))


def serve(incoming: int, outgoing: int) -> int:
    """The main function of the process: serve calls until the orchestrator closes its end. Returns the exit status."""
    keep_only(incoming, outgoing)

    from concurrent.futures import ThreadPoolExecutor

    from executor.registry.client import Client

    gc.enable()  # disabled while modules are loaded
    channel = rpc.Channel(incoming, outgoing, _MESSAGE, "the orchestrator")
    channel.send(_Started(os.getpid()))
    credentials: _Credentials = rpc.stub(_CREDENTIALS, channel.call)
    client: Client | None = None
    pool = ThreadPoolExecutor(_CONCURRENT, "call")
    for message in channel.messages():
        match message:
            case _Begin(settings):
                client = Client(settings, credentials.credential, tell=lambda notice: channel.send(_Notice(notice)))
            case rpc.Call():
                pool.submit(channel.answer, _CALLS, client, message)
            case _:
                break
    channel.close()
    return 0
