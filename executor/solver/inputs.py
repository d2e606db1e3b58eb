"""The inputs of a job: what its result depends on, and how each can be checked when the same job is requested again.

Everything that takes part in a cache key (a base, a source of COPY or ADD, a mount, a step) gets an ``Input``, and so
does every request that leaves the job: to the orchestrator, for a tag of a registry, to a remote cache. An input cannot
be checked again until its user accounts for it. With a single input unaccounted for, the job has no dependency record:
its result is not cacheable, and the next build runs an executor. A new kind of input that nobody accounts for costs
time, but never gives a stale image.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Final

import msgspec

from executor import protocol
from executor.solver import cache
from executor.solver.cache import CacheEntry
from executor.store.store import Store
from platforms import debug

_RECORD_LIMIT: Final = 1 << 20
"""Maximum size of a dependency record in bytes."""


class Input:
    """One input of a job. Created by ``Inputs.add``, accounted for by its user."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        """For messages: ``base``, ``source``, ``mount``, …. Not a name, which may be a URL with a password."""
        self._opened = False
        self._accounted = False
        self._signature: protocol.StatSignature | None = None

    def mark_static(self) -> None:
        """Account for an input that is all in the Dockerfile, in the job, or the result of earlier steps.

        No effect on an input that ``mark_opened`` was called on.
        """
        self._accounted = not self._opened

    def mark_pinned(self, digest: str) -> None:
        """Account for an input whose content has ``digest``: by a pin, which the orchestrator checks, or in the
        Dockerfile.

        No effect if ``digest`` is "".
        """
        self._accounted = bool(digest) and not self._opened

    def mark_signed(self, signature: protocol.StatSignature) -> None:
        """Account for files of a context by their ``signature``. No effect if its digest is ""."""
        if signature.digest:
            self._signature = signature
            self._accounted = True

    def mark_opened(self) -> None:
        """Note that files of a context are read: from now on only ``mark_signed`` accounts for the input."""
        self._opened = True
        self._accounted = self._signature is not None

    @property
    def accounted(self) -> bool:
        """Whether the input can be checked again."""
        return self._accounted

    @property
    def signature(self) -> protocol.StatSignature | None:
        """The stat signature, of an input that is files of a context."""
        return self._signature


class Inputs:
    """All inputs of one job. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inputs: list[Input] = []
        self._questions: set[str] = set()
        """Their kinds: a step may send thousands of requests to an SSH agent."""
        self._steps: dict[str, protocol.FoundStep] = {}

    def add(self, kind: str) -> Input:
        """Create an input of ``kind``, which is not accounted for."""
        made = Input(kind)
        with self._lock:
            self._inputs.append(made)
        return made

    def asked(self, question: protocol.Question) -> None:
        """Add an input for a request to the orchestrator, unless images cannot depend on it: credentials, and whether a
        push is needed."""
        match question:
            case protocol.AskCredential() | protocol.AskToken() | protocol.AskCacheAccount() | protocol.AskManifest():
                pass
            case _:  # any other kind is an input
                with self._lock:
                    self._questions.add(question.kind)

    def found(self, key: str, outcome: CacheEntry) -> None:
        """Note that the step with ``key`` had ``outcome``. One from a remote cache is an input that cannot be
        checked."""
        with self._lock:
            self._steps[key] = protocol.FoundStep(key, outcome.result, outcome.created)
        if outcome.imported:
            self.add("step from a remote cache")

    def record(self) -> protocol.DependencyRecord | None:
        """Return the dependency record of the result; None if the result is not cacheable, or the record is too
        large."""
        with self._lock:
            unaccounted = {each.kind for each in self._inputs if not each.accounted} | self._questions
            if unaccounted:
                debug.log("result not cacheable", inputs=tuple(sorted(unaccounted)))
                return None
            signatures = dict.fromkeys(each.signature for each in self._inputs if each.signature is not None)
            made = protocol.DependencyRecord(tuple(self._steps.values()), tuple(signatures))
        return None if len(msgspec.json.encode(made)) > _RECORD_LIMIT else made


def unchanged(
    records: Iterable[tuple[protocol.DependencyRecord, protocol.Job]], store: Store, check: Callable[[], None]
) -> bool:
    """Whether everything in the dependency records of these jobs is unchanged.

    ``check`` raises an exception on cancellation. Raises ``KanifoldError`` for inputs that cannot be read.
    """
    steps: set[protocol.FoundStep] = set()
    signatures: dict[protocol.DirectoryContext, set[protocol.StatSignature]] = {}
    for record, job in records:
        contexts = {each.name: each for each in job.contexts}
        steps.update(record.steps)
        for each in record.signatures:
            context = contexts.get(each.context)
            if not isinstance(context, protocol.DirectoryContext):
                return False  # its files are not on this machine
            signatures.setdefault(context, set()).add(each)
    return all(_is_found(each, store) for each in steps) and _same_signatures(signatures, store, check)


def _is_found(step: protocol.FoundStep, store: Store) -> bool:
    found = cache.get_entry(store, step.key)
    return (
        found is not None
        and (found.result, found.created, found.imported) == (step.result, step.created, "")
        and cache.is_usable(store, found.layer)
    )


def _same_signatures(
    signatures: Mapping[protocol.DirectoryContext, Iterable[protocol.StatSignature]],
    store: Store,
    check: Callable[[], None],
) -> bool:
    if not signatures:
        return True
    from executor.context.directory import open_context
    from executor.solver import statwalk  # which takes its time to load

    directory = os.path.join(store.root, "tmp")
    for context, wanted in signatures.items():
        with closing(open_context(context.path, context.ignore, owners=context.owners)) as tree:
            for each in wanted:
                source = statwalk.source_of(tree, each.pattern, parents=each.parents, context=True)
                if statwalk.walk(directory, source, each.exclude, check).signature != each.digest:
                    return False
    return True
