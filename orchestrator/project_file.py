"""``kanifold.yaml``: what a project says about how it is built, in the directory in which the command is run.

    platforms: [linux/amd64, linux/arm64]
    runners:
      linux/amd64: ubuntu-24.04
      linux/arm64: [self-hosted, arm64]
    emulate-on: ubuntu-24.04
    nodes: [arm, riscv]

``kanifold matrix`` and ``kanifold index create --metadata`` read it (docs/ci.md), and builds read ``nodes``
(docs/nodes.md). What it says of a release is read by ``orchestrator.release.release_file``. A build context that is
elsewhere is not searched for it, so whoever only provides files to build from decides nothing here.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from orchestrator.nodes import inventory
from orchestrator.yaml_settings import Setting, read
from platforms.errors import UsageError
from platforms.paths import below
from platforms.platform import Platform

NAME: Final = "kanifold.yaml"
KEYS: Final = ("platforms", "runners", "emulate-on", "nodes", "variables", "templates", "images", "groups")
"""The keys that it may have; the last four are those of a release."""
_NODE_KEYS: Final = ("url", "platforms", "max-jobs")


class ProposedNode(msgspec.Struct, frozen=True):
    """A node that a project names. Only ``kanifold node add`` uses more of it than its name."""

    name: str
    url: str = ""
    platforms: tuple[Platform, ...] = ()
    max_jobs: int = 0


class ProjectFile(msgspec.Struct, frozen=True):
    """The settings of a project; all are empty if there is no file."""

    path: str = ""
    """"" if there is no file."""
    platforms: tuple[Platform, ...] = ()
    runners: tuple[tuple[Platform, tuple[str, ...]], ...] = ()
    """The labels of the runner for each platform."""
    emulate_on: tuple[str, ...] = ()
    """The labels of the runner for platforms that have none."""
    nodes: tuple[ProposedNode, ...] | None = None
    """The nodes to use beside this machine; None if it does not say."""
    images: bool = False
    """Whether it declares the images of a release."""


def load(directory: str = os.curdir) -> ProjectFile:
    """Return the settings in ``directory``. Raises ``UsageError``, which names file, line and column."""
    path = NAME if directory == os.curdir else below(directory, NAME)
    try:
        entries = read(path).mapping(*KEYS)
    except (FileNotFoundError, NotADirectoryError):
        return ProjectFile()
    runners = entries["runners"].mapping() if "runners" in entries else {}
    return ProjectFile(
        path,
        read_platforms(entries["platforms"]) if "platforms" in entries else (),
        tuple((inventory.platform(each, name), _labels(each)) for name, each in runners.items()),
        _labels(entries["emulate-on"]) if "emulate-on" in entries else (),
        _nodes(entries["nodes"]) if "nodes" in entries else None,
        "images" in entries,
    )


def read_platforms(setting: Setting) -> tuple[Platform, ...]:
    """Return the platforms that ``setting`` names, at least one. Raises ``UsageError``."""
    found = inventory.platforms(setting)
    if not found:
        raise setting.refusal("no platform is named")
    return found


def _labels(setting: Setting) -> tuple[str, ...]:
    found = setting.texts()
    if not found:
        raise setting.refusal("a label is expected, or a list of labels")
    return found


def _nodes(setting: Setting) -> tuple[ProposedNode, ...]:
    """Return the nodes in a list of names, or in a mapping of names to what is proposed."""
    if not isinstance(setting.value, dict):
        return tuple(ProposedNode(_node_name(setting, name)) for name in setting.texts())
    return tuple(_proposed(_node_name(each, name), each) for name, each in setting.value.items())


def _node_name(setting: Setting, name: str) -> str:
    try:
        return inventory.check_name(name)
    except UsageError as error:
        raise inventory.refused(setting, error) from error


def _proposed(name: str, setting: Setting) -> ProposedNode:
    values = setting.mapping(*_NODE_KEYS)
    url = values["url"].text() if "url" in values else ""
    try:
        if url:
            inventory.declared(name, url)
    except UsageError as error:
        raise inventory.refused(values["url"], error) from error
    return ProposedNode(
        name,
        url,
        inventory.platforms(values["platforms"]) if "platforms" in values else (),
        values["max-jobs"].number() if "max-jobs" in values else 0,
    )
