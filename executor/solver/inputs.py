"""The inputs of a job: what its answer rests on, and how each of them can be looked at again when the same job comes.

Whatever takes part in a cache key (a base, a source of COPY or ADD, a mount, a step) is given an ``Input``, and so is
every question that leaves the job: to the orchestrator, for a tag of a registry, to an outside cache. An input counts
as one that cannot be looked at again until its holder says otherwise. A single one that stays so, and the job has no
dependency record: its answer is not cacheable, and the next build asks an executor again. A new kind of input that
says nothing therefore costs time and never gives a stale image.
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
"""Bytes of a message that a dependency record may take."""


class Input:
    """One thing that a job may have taken from outside. Made by ``Inputs.add``, accounted for by whoever uses it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        """For people: ``base``, ``source``, ``mount``, …. No name, which may be a URL with a password in it."""
        self._opened = False
        self._accounted = False
        self._signature: protocol.StatSignature | None = None

    def nothing(self) -> None:
        """Nothing is taken from outside: all of it is in the Dockerfile, in the job, or the result of earlier steps.

        Without effect on an input for which something outside has been opened.
        """
        self._accounted = not self._opened

    def pinned(self, digest: str) -> None:
        """It is content named by ``digest``: by a pin, which the orchestrator compares, or in the Dockerfile.

        Without effect when ``digest`` is "".
        """
        self._accounted = bool(digest) and not self._opened

    def files(self, signature: protocol.StatSignature) -> None:
        """It is files of a context, all of which ``signature`` tells apart; without effect when that tells nothing."""
        if signature.digest:
            self._signature = signature
            self._accounted = True

    def opened(self) -> None:
        """Something outside has been opened to be read, so that only ``files`` can account for it."""
        self._opened = True
        self._accounted = self._signature is not None

    @property
    def accounted(self) -> bool:
        """Whether it can be looked at again."""
        return self._accounted

    @property
    def signature(self) -> protocol.StatSignature | None:
        """How to look at it again, when it is files of a context."""
        return self._signature


class Inputs:
    """All inputs of one job. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inputs: list[Input] = []
        self._questions: set[str] = set()
        """Their kinds: a step's SSH agent may be asked thousands of times."""
        self._steps: dict[str, protocol.FoundStep] = {}

    def add(self, kind: str) -> Input:
        """A new input of that ``kind``, which is not accounted for yet."""
        made = Input(kind)
        with self._lock:
            self._inputs.append(made)
        return made

    def asked(self, question: protocol.Question) -> None:
        """The orchestrator is asked ``question``. No image depends on how to log in, or on what need not be pushed."""
        match question:
            case protocol.AskCredential() | protocol.AskManifest():
                pass
            case _:  # that of which nobody has thought is an input
                with self._lock:
                    self._questions.add(question.kind)

    def found(self, key: str, outcome: CacheEntry) -> None:
        """A step with ``key`` had ``outcome``, which is recorded under that key unless an outside cache said so."""
        with self._lock:
            self._steps[key] = protocol.FoundStep(key, outcome.result, outcome.created)
        if outcome.foreign:
            self.add("step from an outside cache")

    def record(self) -> protocol.DependencyRecord | None:
        """What the answer rests on; None when it is not cacheable, or that is too much to be looked at cheaply."""
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
    """Whether these jobs would find again all that their dependency records hold.

    ``check`` raises when it is time to end. Raises ``KanifoldError`` for what cannot be looked at.
    """
    steps: set[protocol.FoundStep] = set()
    signatures: dict[protocol.DirectoryContext, set[protocol.StatSignature]] = {}
    for record, job in records:
        contexts = {each.name: each for each in job.contexts}
        steps.update(record.steps)
        for each in record.signatures:
            context = contexts.get(each.context)
            if not isinstance(context, protocol.DirectoryContext):
                return False  # its files are not here to be looked at
            signatures.setdefault(context, set()).add(each)
    return all(_is_found(each, store) for each in steps) and _same_signatures(signatures, store, check)


def _is_found(step: protocol.FoundStep, store: Store) -> bool:
    found = cache.get_entry(store, step.key)
    return (
        found is not None
        and (found.result, found.created, found.foreign) == (step.result, step.created, "")
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
