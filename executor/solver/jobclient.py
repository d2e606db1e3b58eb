"""The registry client of a job: a tag may point to something else the next time, so asking for one is an input."""

from __future__ import annotations

from executor.image.manifest import Descriptor, Index, Manifest
from executor.registry.auth import Keychain
from executor.registry.client import Client
from executor.registry.config import RegistrySettings
from executor.registry.notices import Tell
from executor.registry.reference import Reference
from executor.registry.transfer import Progress
from executor.solver.inputs import Inputs
from executor.transport import Cancel


class JobClient(Client):
    """A client that adds every question for a tag to ``inputs``; a digest says itself what is behind it."""

    def __init__(
        self,
        inputs: Inputs,
        settings: RegistrySettings,
        keychain: Keychain,
        *,
        progress: Progress,
        cancel: Cancel,
        tell: Tell,
    ) -> None:
        super().__init__(settings, keychain, progress=progress, cancel=cancel, tell=tell)
        self._inputs = inputs

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
