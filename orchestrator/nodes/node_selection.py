"""Which nodes a build may use: those of ``--node``, else of ``KANIFOLD_NODES``, else this machine and the inventory.

A project's ``kanifold.yaml`` comes with a checkout and is not trusted: it only selects nodes of the user's inventory,
by name. What it says beyond that is a proposal, which ``kanifold node add NAME`` shows and takes up.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from orchestrator import project_file
from orchestrator.nodes import inventory
from orchestrator.nodes.inventory import KUBERNETES, LOCAL, NodeEntry
from platforms.errors import KanifoldError, Problem, UsageError
from platforms.platform import Platform

if TYPE_CHECKING:
    from orchestrator.nodes.node import Node

VARIABLE: Final = "KANIFOLD_NODES"
_USUAL: Final = ("amd64", "arm64")
"""Architectures that the nodes of a cluster may have, whatever is built."""


class NodeSelection(msgspec.Struct, frozen=True):
    """The nodes that a build may use."""

    entries: tuple[NodeEntry, ...]
    """In the order in which equally good ones are preferred."""
    forced: tuple[tuple[Platform, str], ...] = ()
    """Platforms, each with the name of the node that the user wants it to be built on."""
    unknown: tuple[str, ...] = ()
    """Names that the project's file has and the inventory has not."""

    @property
    def in_clusters(self) -> bool:
        """Whether one of them is a cluster, to which the orchestrator itself connects."""
        return any(each.url.startswith(KUBERNETES) for each in self.entries)

    def entry(self, name: str) -> NodeEntry | None:
        """Return the node ``name``."""
        return next((each for each in self.entries if each.name == name), None)


def select(
    words: Sequence[str], forced: tuple[tuple[Platform, str], ...], bootstrap: bool = True
) -> NodeSelection | None:
    """Return the nodes that a build may use; None if that is this machine as it is.

    ``words`` are those of ``--node``: ``NAME`` or ``NAME=URL``. Raises ``UsageError`` for an unknown node, and for what
    is wrong with a file.
    """
    flag, asked = ("--node", words) if words else (VARIABLE, re.split(r"[\s,]+", os.environ.get(VARIABLE, "")))
    asked = tuple(filter(None, asked))
    known = inventory.load(inventory.user_file())
    project = project_file.load().nodes
    proposed = () if project is None else tuple(each.name for each in project)
    unknown: tuple[str, ...] = ()
    if asked:
        found = [_asked(word, flag, known, proposed) for word in asked]
    else:
        names = [each.name for each in known]
        found = [each for each in known if project is None or each.name in (*proposed, LOCAL)]
        unknown = tuple(name for name in proposed if name not in (*names, LOCAL))
        if LOCAL not in names and (sys.platform == "linux" or not found):
            found.insert(0, NodeEntry(LOCAL, LOCAL))
    found += [inventory.find(name, known, proposed) for name in dict(forced).values() if name not in _names(found)]
    found = [each if bootstrap else replace(each, bootstrap=False) for each in found]
    _check_names(found)
    if [NodeEntry(LOCAL, LOCAL, bootstrap=bootstrap)] == found and not unknown:
        return None
    return NodeSelection(tuple(found), forced, unknown)


def _names(entries: Iterable[NodeEntry]) -> list[str]:
    return [each.name for each in entries]


def _asked(word: str, flag: str, known: Sequence[NodeEntry], proposed: Sequence[str]) -> NodeEntry:
    name, equals, url = word.partition("=")
    try:
        return inventory.declared(name, url) if equals else inventory.find(name, known, proposed)
    except UsageError as error:
        raise KanifoldError.of(replace(error.problem, what=f"{flag}: {error.problem.what}")) from error


def _check_names(entries: Sequence[NodeEntry]) -> None:
    names = _names(entries)
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two nodes are called {name}", remedy="give every node a name of its own, once")


def unknown_nodes(selection: NodeSelection) -> tuple[Problem, ...]:
    """Return a warning for each node that the project's file names and the inventory does not have."""
    return tuple(
        Problem(
            "UsageError",
            f"{project_file.NAME} names the node {name}, which is not used",
            why="your inventory has none of this name",
            remedy=f"kanifold node add {name}",
        )
        for name in selection.unknown
    )


def nodes(
    selection: NodeSelection, here: Node, *, sends: bool, platforms: Sequence[Platform] = (), build: str = ""
) -> tuple[Node, ...]:
    """Return the nodes of ``selection``; ``here`` is this machine. ``sends`` as for ``node``.

    A cluster is a node for each architecture that it may have: of ``platforms``, and others that may emulate them.
    ``build`` is a text that the same build has when it is run again.
    """
    found: list[Node] = []
    for each in selection.entries:
        if each.url.startswith(KUBERNETES):
            found += clusters(each, sends=sends, platforms=platforms, build=build)
        else:
            found.append(here if each.url == LOCAL else node(each, sends=sends))
    return tuple(found)


def clusters(entry: NodeEntry, *, sends: bool, platforms: Sequence[Platform], build: str) -> tuple[Node, ...]:
    """Return the nodes of the cluster that ``entry`` declares, as for ``nodes``."""
    from orchestrator.nodes.kubernetes import address
    from orchestrator.nodes.kubernetes.cluster import Cluster
    from orchestrator.nodes.kubernetes.kubernetes_node import KubernetesNode

    where = address.parse(entry.url)
    others = where.architectures or _USUAL  # which may emulate them
    architectures = dict.fromkeys((*(each.architecture for each in platforms), *others))
    cluster = Cluster(where, entry.name, build)
    return tuple(KubernetesNode(cluster, entry, each, sends=sends) for each in architectures)


def node(entry: NodeEntry, *, sends: bool) -> Node:
    """Return the node that ``entry`` declares; ``sends``: whether kanifold may be sent there if ``entry`` allows it."""
    if entry.url == LOCAL:
        from orchestrator.nodes.local_node import LocalNode

        return LocalNode(None)
    from orchestrator.nodes.ssh_node import SSHNode

    return SSHNode(entry, sends=sends)
