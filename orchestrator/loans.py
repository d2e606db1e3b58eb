"""What an executor on another machine may be lent for: the repositories and actions of its job."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from executor import protocol
from executor.registry import reference
from platforms.errors import RegistryError, UsageError

_PULL = frozenset({"pull"})
_PUSH = frozenset({"pull", "push"})


def check_loan(job: protocol.Job, registry: str, repository: str, scopes: Sequence[str], contexts: str = "") -> bool:
    """Return whether ``job`` has to do with ``repository`` of ``registry``: a trigger of a base may name any other.

    ``contexts`` is the repository that contexts are read from; "" if they are not.

    Raises ``RegistryError`` for ``scopes`` (``token.scope``) beyond what it does there.
    """
    known: dict[tuple[str, str], frozenset[str]] = {}
    for where, actions in _repositories(job, contexts):
        known[where] = known.get(where, frozenset()) | actions
    if (registry, repository) not in known:
        return False
    for each in scopes:
        resource, _, wanted = each.rpartition(":")
        name = resource.removeprefix("repository:")
        if name == resource or not set(wanted.split(",")) <= known.get((registry, name), frozenset()):
            raise RegistryError(f"no token for {each!r} of {registry}", why="the job of the executor has no use for it")
    return True


def _repositories(job: protocol.Job, contexts: str) -> Iterator[tuple[tuple[str, str], frozenset[str]]]:
    """Yield the repositories of ``job``, by registry and name, with allowed actions."""
    options = job.options
    pulled = [contexts, *(pin.name for pin in job.pins)]
    pulled += [each.image for each in job.contexts if isinstance(each, protocol.ImageContext)]
    pulled += [each.name for each in options.cache_from if isinstance(each, protocol.CacheInRegistry)]
    pushed = [*job.push]
    pushed += [each.to.name for each in options.cache_to if isinstance(each.to, protocol.CacheInRegistry)]
    for names, actions in ((pulled, _PULL), (pushed, _PUSH)):
        for name in filter(None, names):
            with contextlib.suppress(UsageError):
                found = reference.parse(name)
                for mirror in options.registries.mirrors_of(found.registry):
                    host, _, prefix = mirror.removeprefix("http://").partition("/")
                    yield (host, f"{prefix}/{found.repository}" if prefix else found.repository), _PULL
                yield (found.registry, found.repository), actions
