"""Content of contexts in repositories of a registry, for executors that read it there rather than be sent it.

An artifact has one layer, a bundle (``executor.context.bundle``) that depends on nothing but the files: executors that
lack the same files use the same one. All are deleted when the build has ended. If one cannot be made, as the registry
refuses it or the disk has no room, no other one is: the files are sent.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Final

import msgspec

from executor.image.manifest import Descriptor
from executor.protocol import ContextArtifact
from executor.registry import reference
from executor.registry.reference import Reference
from executor.store import faults
from executor.store.store import Store
from orchestrator.registries import Registry
from orchestrator.view import events
from orchestrator.view.events import Emit
from platforms.errors import Problem, RegistryError, StoreError

if TYPE_CHECKING:
    from collections.abc import Hashable

Pack = Callable[[Callable[[bytes | memoryview], object]], object]
"""Passes a bundle to its argument, in blocks."""

CONFIG: Final = "application/vnd.kanifold.context.v1+json"
"""The media type of the config, an empty object, which says what the artifact is."""
BUNDLE: Final = "application/vnd.kanifold.context.bundle.v1"
_LIMIT: Final = 200
"""Artifacts of a build. An executor asks for the files of a COPY at once, if it lacks as many bytes."""


class _Pushed(msgspec.Struct, frozen=True):
    """An artifact that was pushed."""

    manifest: Reference
    artifact: ContextArtifact


class ContextArtifacts:
    """The artifacts of one build. Thread-safe; one is made at a time, so that only one needs a place on the disk."""

    def __init__(self, store: Store, registry: Registry, emit: Emit) -> None:
        self._store = store
        self._registry = registry
        self._emit = emit
        self._lock = threading.Lock()
        self._found: dict[Hashable, _Pushed] = {}
        self._refused = False

    def get(self, key: Hashable, repository: str, pack: Pack) -> ContextArtifact | None:
        """Return the artifact ``key`` in ``repository``, which is pushed unless it was; ``pack`` makes its content.
        None if it cannot be made, or the registry does not take it, with a warning."""
        with self._lock:
            found = self._found.get((repository, key))
            if found is None and not self._refused and len(self._found) < _LIMIT:
                try:
                    found = self._found[repository, key] = self._push(reference.parse(repository), pack)
                except (RegistryError, StoreError) as error:
                    self._refused = True
                    what = f"the build context is not sent by way of {repository}"
                    self._warn(what, ": ".join(filter(None, (error.problem.what, error.problem.why))))
            return None if found is None else found.artifact

    def delete(self) -> None:
        """Delete all artifacts that there are, also while another one is pushed. Says so if a registry does not allow
        that."""
        while self._found:
            _, pushed = self._found.popitem()
            try:
                self._registry.delete_manifest(pushed.manifest)
            except RegistryError as error:
                self._warn(f"the build context stays in the registry: {pushed.manifest}", error.problem.why)

    def _push(self, repository: Reference, pack: Pack) -> _Pushed:
        path = self._store.session.temporary()
        try:
            with faults.translated(self._store.root, "cannot keep a build context"), open(path, "xb") as file:
                writer = _Writer(file)
                pack(writer.write)
            layer = Descriptor(BUNDLE, f"sha256:{writer.digest.hexdigest()}", writer.size)
            manifest = self._registry.push_artifact(repository, CONFIG, layer, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)
        artifact = ContextArtifact(str(repository), layer)
        return _Pushed(repository.with_digest(manifest.digest), artifact)

    def _warn(self, what: str, why: str) -> None:
        rule = "ContextArtifact"
        self._emit(events.WarningRaised(problem=Problem(rule, what, why), rule=rule))


class _Writer:
    """Writes to ``file``, and hashes what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)
