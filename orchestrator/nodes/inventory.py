"""Nodes as the user has declared them: the inventory ``$XDG_CONFIG_HOME/kanifold/nodes.yaml``.

    nodes:
      arm:
        url: ssh://build@arm.example.com:2222
        platforms: [linux/arm64]
        max-jobs: 2

Secrets and credentials of builds are sent to these nodes, so the file is refused if somebody else may write to it, and
addresses come from nowhere else but the command line and the environment.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from executor.dockerfile.suggestions import hint
from orchestrator import yaml_settings
from orchestrator.nodes import ssh_address
from orchestrator.yaml_settings import Setting
from platforms import parsing
from platforms.errors import UsageError, printable
from platforms.paths import settings_file
from platforms.platform import Platform, candidates

LOCAL: Final = "local"
"""The name and the URL of this machine."""
KUBERNETES: Final = "kubernetes://"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PYTHON: Final = re.compile(r"[A-Za-z0-9_./+][A-Za-z0-9_./+-]{0,254}")
_KEYS: Final = ("url", "platforms", "max-jobs", "bootstrap", "python")
_SWITCH: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class NodeEntry(msgspec.Struct, frozen=True):
    """A declared node."""

    name: str
    """``[a-z0-9][a-z0-9._-]{0,62}``; ``local`` is this machine."""
    url: str
    """``ssh://[USER@]HOST[:PORT]``, ``kubernetes://CONTEXT/NAMESPACE?…``, or ``local``."""
    platforms: tuple[Platform, ...] = ()
    """The platforms to build on it; empty for what it says itself."""
    max_jobs: int = 0
    """How many jobs it runs at a time; 0 for as many as it has processors."""
    bootstrap: bool = True
    """Whether kanifold may be sent there if it is missing or of another version."""
    python: str = ""
    """The Python there, a path or a name on its PATH; "" for the first of a usable version."""

    def takes(self, platform: Platform) -> bool:
        """Whether ``platform`` may be built on it: one of ``platforms``, or one that such a machine runs, too."""
        return not self.platforms or any(
            platform.architecture == each.architecture and (not each.variant or platform in candidates(each))
            for each in self.platforms
        )


def user_file() -> str:
    """Return the path of the inventory."""
    return settings_file("nodes.yaml")


def load(path: str) -> tuple[NodeEntry, ...]:
    """Return the nodes in the file ``path``, in its order; none if there is no file.

    Raises ``UsageError``, which names file, line and column, and for a file that other users may write to.
    """
    try:
        _check_owner(path)
        document = yaml_settings.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return entries(document)


def entries(document: Setting) -> tuple[NodeEntry, ...]:
    """Return the nodes in an inventory. Raises ``UsageError``."""
    nodes = document.mapping("nodes").get("nodes")
    return () if nodes is None else tuple(_entry(name, each) for name, each in nodes.mapping().items())


def declared(name: str, url: str) -> NodeEntry:
    """Return the node ``name`` at ``url``. Raises ``UsageError`` for names and addresses that none can have."""
    check_name(name)
    check_url(url)
    if (name == LOCAL) != (url == LOCAL):
        raise UsageError(
            f"the node {name} cannot be at {url}",
            why="local is this machine, and no other name is",
            remedy="give another machine another name, and an address ssh://USER@HOST or kubernetes://CONTEXT/NAMESPACE",
        )
    return NodeEntry(name, url)


def check_url(url: str) -> None:
    """Raise ``UsageError`` for an address that no node can have."""
    if url.startswith(KUBERNETES):
        from orchestrator.nodes.kubernetes import address

        address.parse(url)
    elif url != LOCAL:
        ssh_address.parse(url)


def check_name(name: str) -> str:
    """Return ``name``. Raises ``UsageError`` if no node can have it."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"a node cannot be called {printable(name, 80)!r}",
            why="names have up to 63 small letters, digits, dots, underscores and dashes, and begin with one of the "
            "first two",
        )
    return name


def check_python(text: str) -> str:
    """Return ``text``, a program or its path. Raises ``UsageError`` for what could be more than that to a shell."""
    if not _PYTHON.fullmatch(text):
        raise UsageError(f"{printable(text, 80)!r} is no Python's name or path")
    return text


def find(name: str, known: Sequence[NodeEntry], proposed: Collection[str] = ()) -> NodeEntry:
    """Return the node ``name``, one of ``known`` or this machine.

    Raises ``UsageError`` for another one, and tells if it is one of those ``proposed`` by the project.
    """
    for each in known:
        if each.name == name:
            return each
    if check_name(name) == LOCAL:
        return NodeEntry(LOCAL, LOCAL)
    names = [each.name for each in known]
    url = "" if name in proposed else " ssh://USER@HOST"
    raise UsageError(
        f"there is no node {name}{hint(name, names)}",
        why=f"the inventory has {', '.join(names)}" if names else "the inventory has none",
        remedy=f"kanifold node add {name}{url}",
    )


def platforms(setting: Setting) -> tuple[Platform, ...]:
    """Return the platforms in a list or a text. Raises ``UsageError``."""
    return tuple(dict.fromkeys(platform(setting, word) for text in setting.texts() for word in text.split(",")))


def platform(setting: Setting, text: str) -> Platform:
    """Return the platform ``text`` of the value ``setting``. Raises ``UsageError``."""
    try:
        return parsing.parse(text.strip())
    except UsageError as error:
        raise refused(setting, error) from error


def _entry(name: str, setting: Setting) -> NodeEntry:
    values = setting.mapping(*_KEYS)
    if "url" not in values:
        raise setting.refusal("it has no url", remedy="url: ssh://USER@HOST")
    try:
        found = declared(name, values["url"].text())
    except UsageError as error:
        raise refused(values["url"], error) from error
    return NodeEntry(
        found.name,
        found.url,
        platforms(values["platforms"]) if "platforms" in values else (),
        values["max-jobs"].number() if "max-jobs" in values else 0,
        _switch(values["bootstrap"]) if "bootstrap" in values else True,
        _python(values["python"]) if "python" in values else "",
    )


def _switch(setting: Setting) -> bool:
    found = _SWITCH.get(setting.text().lower())
    if found is None:
        raise setting.refusal("true or false is expected")
    return found


def _python(setting: Setting) -> str:
    try:
        return check_python(setting.text())
    except UsageError as error:
        raise refused(setting, error) from error


def refused(setting: Setting, error: UsageError) -> UsageError:
    """Return ``error`` as one about the value ``setting``."""
    problem = error.problem
    return setting.refusal(f"{problem.what}: {problem.why}" if problem.why else problem.what, remedy=problem.remedy)


def _check_owner(path: str) -> None:
    state = os.stat(path)
    if state.st_uid not in (0, os.geteuid()) or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            f"{path} is not used",
            why="other users may write to it, and it decides where secrets and credentials are sent",
            remedy=f"chmod go-w {path}, and look at what is in it",
        )
