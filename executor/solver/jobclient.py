"""The registry client of a job. A request by tag is an input, because the tag can move."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Final

import msgspec

from executor import protocol
from executor.conversation import Conversation
from executor.image.manifest import Descriptor, Index, Manifest
from executor.registry.auth import Credential, Loan, own_keychain
from executor.registry.client import Client
from executor.registry.notices import Notice, Remark, Wait
from executor.registry.reference import Reference
from executor.registry.transfer import Direction
from executor.solver.inputs import Inputs
from executor.solver.lifetime import Cancellation
from platforms import decoding
from platforms.errors import Problem, ProtocolError

_CLOSING: Final = 0.4
"""Seconds from the cancellation of a job until all connections are closed. Uploads are cancelled meanwhile."""

# Made here, by one thread: two that make the decoder of one type at the same moment crash msgspec.
_CREDENTIAL: Final[msgspec.json.Decoder[Credential]] = msgspec.json.Decoder(Credential)
_LOAN: Final[msgspec.json.Decoder[Loan]] = msgspec.json.Decoder(Loan)


class JobClient(Client):
    """A client that adds an input for each request by tag.

    It gets credentials from the orchestrator and sends it progress messages. It is closed soon after the job is
    cancelled.
    """

    def __init__(
        self, job: protocol.Job, conversation: Conversation, inputs: Inputs, cancellation: Cancellation
    ) -> None:
        super().__init__(job.options.registries, self._credential, cancel=cancellation.event, tell=self._notice)
        if job.lends:
            self.borrow(self._loan, own_keychain())
        self._conversation = conversation
        self._inputs = inputs
        cancellation.future.add_done_callback(self._close_soon)

    def _credential(self, name: str) -> Credential | None:
        registry, _, repository = name.partition("/")
        answer = self._conversation.ask(protocol.AskCredential(registry, repository))
        try:
            return None if answer is None else decoding.decode(_CREDENTIAL, answer)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"the credential for {registry} is malformed", why=str(error)) from error

    def _loan(self, registry: str, repository: str, scopes: frozenset[str], fresh: bool) -> Loan | None:
        answer = self._conversation.ask(protocol.AskToken(registry, repository, tuple(sorted(scopes)), fresh))
        try:
            return None if answer is None else decoding.decode(_LOAN, answer)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"what is lent for {registry} is malformed", why=str(error)) from error

    def progress(self, action: Direction, name: str, done: int, total: int) -> None:
        self._conversation.send(protocol.Transfer(protocol.Action(action), name, done, total))

    def _notice(self, notice: Notice) -> None:
        match notice:
            case Wait(registry, what, seconds, why, over):
                self._conversation.send(protocol.Waiting(registry, what, seconds, why, over))
            case Remark(text):
                self._conversation.send(protocol.BuildWarning(Problem("Registry", text), "Registry"))

    def _close_soon(self, _: Future[None]) -> None:
        timer = threading.Timer(_CLOSING, self.close)
        timer.daemon = True
        timer.start()

    def resolve(self, reference: Reference) -> Descriptor:
        self._note(reference)
        return super().resolve(reference)

    def manifest(self, reference: Reference) -> tuple[Manifest | Index, bytes, Descriptor]:
        self._note(reference)
        return super().manifest(reference)

    def has_manifest(self, reference: Reference) -> Descriptor | None:
        self._note(reference)
        return super().has_manifest(reference)

    def find(self, reference: Reference) -> tuple[Manifest | Index, bytes, Descriptor] | None:
        self._note(reference)
        return super().find(reference)

    def _note(self, reference: Reference) -> None:
        if not reference.digest:
            self._inputs.add("tag")
