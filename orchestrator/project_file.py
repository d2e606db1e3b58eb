"""``kanifold.yaml``: what a project says about how it is built, in the directory in which the command is run.

    platforms: [linux/amd64, linux/arm64]
    runners:
      linux/amd64: ubuntu-24.04
      linux/arm64: [self-hosted, arm64]
    emulate-on: ubuntu-24.04

``kanifold matrix`` and ``kanifold index create --metadata`` read it (docs/ci.md). A build context that is elsewhere is
not searched for it, so whoever only provides files to build from decides nothing here.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from orchestrator.yaml_settings import Setting, read
from platforms import parsing
from platforms.errors import UsageError
from platforms.paths import below
from platforms.platform import Platform

NAME: Final = "kanifold.yaml"
KEYS: Final = ("platforms", "runners", "emulate-on")
"""The keys that it may have."""


class ProjectFile(msgspec.Struct, frozen=True):
    """The settings of a project; all are empty if there is no file."""

    path: str = ""
    """"" if there is no file."""
    platforms: tuple[Platform, ...] = ()
    runners: tuple[tuple[Platform, tuple[str, ...]], ...] = ()
    """The labels of the runner for each platform."""
    emulate_on: tuple[str, ...] = ()
    """The labels of the runner for platforms that have none."""


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
        _platforms(entries["platforms"]) if "platforms" in entries else (),
        tuple((_platform(each, name), _labels(each)) for name, each in runners.items()),
        _labels(entries["emulate-on"]) if "emulate-on" in entries else (),
    )


def _platforms(setting: Setting) -> tuple[Platform, ...]:
    found = dict.fromkeys(_platform(setting, word) for text in setting.texts() for word in text.split(","))
    if not found:
        raise setting.refusal("no platform is named")
    return tuple(found)


def _platform(setting: Setting, text: str) -> Platform:
    try:
        return parsing.parse(text.strip())
    except UsageError as error:
        raise setting.refusal(str(error), remedy=error.problem.remedy) from error


def _labels(setting: Setting) -> tuple[str, ...]:
    found = setting.texts()
    if not found:
        raise setting.refusal("a label is expected, or a list of labels")
    return found
