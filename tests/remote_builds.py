"""Builds on machines that share nothing but a remote cache: the command with an empty store, and what it has told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from conftest import Kanifold, Outcome

PLATFORMS = ("linux/amd64", "linux/arm64")
AMD64 = ("linux/amd64",)
RANDOM = "cat /proc/sys/kernel/random/uuid"
"""A step that nobody can do twice with the same outcome."""


class Machine:
    """The command with an empty store."""

    def __init__(self, kanifold: Kanifold, name: str) -> None:
        self._kanifold = kanifold
        self.name = name
        self.root = kanifold.home / name

    def build(self, folder: Path, *flags: str, platforms: tuple[str, ...] = PLATFORMS, **environment: str) -> Built:
        iid = self._kanifold.home / f"{self.name}.iid"
        outcome = self._kanifold(
            "build", folder, "--platform", ",".join(platforms), "--progress", "rawjson", "--iidfile", iid, *flags,
            *(() if "--push" in flags else ("-o", f"type=oci,dest={self._kanifold.home / self.name}.oci")),
            KANIFOLD_ROOT=str(self.root), **environment,
        )  # fmt: skip
        return Built(outcome, iid.read_text())


class Built(NamedTuple):
    """A build that went well, and its index's (or image's) digest."""

    outcome: Outcome
    digest: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.outcome.err.splitlines()]

    @property
    def warnings(self) -> list[str]:
        return [each["problem"]["what"] for each in self.events if each["type"] == "warned"]

    def steps(self) -> Iterator[tuple[str, str, bool]]:
        """Platform, text, and whether it was cached, of all steps but FROM."""
        names = {
            (each["platform"], step["id"]): step["name"]
            for each in self.events
            if each["type"] == "planned"
            for step in each["steps"]
        }
        for each in self.events:
            if each["type"] == "step_finished":
                name = names[each["platform"], each["step"]]
                if not name.startswith("FROM"):
                    yield each["platform"], name, each["cached"]

    def ran(self) -> set[str]:
        return {name for _, name, cached in self.steps() if not cached}


def only_warning(built: Built) -> str:
    (warning,) = built.warnings
    return warning
