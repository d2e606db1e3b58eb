"""What a job's answer rests on: gathered while it is worked out, and looked at again when the same job comes.

Steps that were found, and files of contexts by what lstat(2) says of them, can be looked at again cheaply. Whatever
else a job asks for (a secret, a URL, a branch of a repository, an image that nobody has pinned) makes the ground soft:
only asking again would tell whether it is the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Final

import msgspec

from executor import job
from executor.build import cache
from executor.build.cache import Outcome
from executor.store.store import Store

_MOST: Final = 1 << 20
"""Bytes of a message that grounds may take."""


class Survey:
    """Of one job. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: dict[str, job.FoundStep] = {}
        self._seen: dict[job.Seen, None] = {}
        self._soft = False

    def found(self, key: str, outcome: Outcome) -> None:
        """A step with ``key`` had ``outcome``, which is recorded."""
        with self._lock:
            self._steps[key] = job.FoundStep(key, outcome.result, outcome.created)
            self._soft = self._soft or bool(outcome.foreign)

    def saw(self, seen: job.Seen) -> None:
        """Files of a context counted for a key."""
        with self._lock:
            self._seen[seen] = None
            self._soft = self._soft or not seen.look

    def soften(self) -> None:
        """Something counted that cannot be looked at again."""
        with self._lock:
            self._soft = True

    def grounds(self) -> job.Grounds | None:
        """All of it; None when that is not all, or so much that looking again would not be cheap."""
        with self._lock:
            found = job.Grounds(tuple(self._steps.values()), tuple(self._seen))
            return None if self._soft or len(msgspec.json.encode(found)) > _MOST else found


def hold(answers: Iterable[tuple[job.Grounds, job.Job]], store: Store, check: Callable[[], None]) -> bool:
    """Whether these jobs would find again what their answers rest on. ``check`` raises when it is time to end.

    Raises ``KanifoldError`` for what cannot be looked at.
    """
    steps: set[job.FoundStep] = set()
    seen: dict[job.Context, set[job.Seen]] = {}
    for grounds, order in answers:
        contexts = {each.name: each for each in order.contexts}
        steps.update(grounds.steps)
        for each in grounds.seen:
            seen.setdefault(contexts[each.context], set()).add(each)
    return all(_is_found(each, store) for each in steps) and _look_the_same(seen, store, check)


def _is_found(step: job.FoundStep, store: Store) -> bool:
    found = cache.outcome(store, step.key)
    return (
        found is not None
        and (found.result, found.created, found.foreign) == (step.result, step.created, "")
        and cache.is_there(store, found.layer)
    )


def _look_the_same(seen: Mapping[job.Context, Iterable[job.Seen]], store: Store, check: Callable[[], None]) -> bool:
    if not seen:
        return True
    from executor.build import look  # which takes its time to load
    from executor.context.directory import open_context

    directory = os.path.join(store.root, "tmp")
    for context, wanted in seen.items():
        with closing(open_context(context.location, context.ignore, owners=context.owners)) as tree:
            for each in wanted:
                source = look.source_of(tree, each.pattern, parents=each.parents, context=True)
                if look.look(directory, source, each.exclude, check).name != each.look:
                    return False
    return True
