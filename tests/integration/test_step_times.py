"""What is told of steps that wait, fail because others did, or name a program that cannot be executed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Base, Kanifold

Context = Callable[[Mapping[str, str | bytes]], Path]


class Told:
    """The messages of one platform's build."""

    def __init__(self, kanifold: Kanifold, folder: Path) -> None:
        done = kanifold.run(
            "build", folder, "--progress", "rawjson", "--platform", "linux/amd64", "-o", "type=cacheonly"
        )
        if "cacheonly" in done.said:
            done = kanifold.run("build", folder, "--progress", "rawjson", "--platform", "linux/amd64")
        self.code = done.code
        self.messages: list[dict[str, Any]] = [
            json.loads(line) for line in done.err.splitlines() if line.startswith("{")
        ]
        self._names = {
            step["id"]: step["name"] for each in self.messages if each["type"] == "planned" for step in each["steps"]
        }

    def of(self, kind: str, instruction: str) -> list[dict[str, Any]]:
        """The messages of ``kind`` about the step that begins so."""
        return [
            each for each in self.messages if each["type"] == kind and self._names[each["step"]].startswith(instruction)
        ]


def test_the_wait_for_a_base_is_none_of_a_steps_time(kanifold: Kanifold, context: Context, busybox: Base) -> None:
    told = Told(kanifold, context({"Dockerfile": f"FROM {busybox.ref}\nRUN true\n"}))
    assert [each["what"] for each in told.of("step_waiting", "RUN")] == ["unpack", ""]
    assert any(each["action"] == "unpack" for each in told.messages if each["type"] == "moved")
    again = Told(kanifold, context({"Dockerfile": f"FROM {busybox.ref}\nRUN echo other\n"}))
    assert again.of("step_waiting", "RUN") == [], "the base is there"


def test_the_wait_for_another_stage_is_none_of_a_steps_time(
    kanifold: Kanifold, context: Context, busybox: Base
) -> None:
    dockerfile = f"FROM {busybox.ref} AS slow\nRUN sleep 2; date > /made\nFROM scratch\nCOPY --from=slow /made /\n"
    told = Told(kanifold, context({"Dockerfile": dockerfile}))
    (copied,) = told.of("step_finished", "COPY")
    (ran,) = told.of("step_finished", "RUN")
    assert copied["seconds"] < 2 <= ran["seconds"]


def test_only_the_step_that_failed_is_one_that_failed(kanifold: Kanifold, context: Context, busybox: Base) -> None:
    dockerfile = (
        f"FROM {busybox.ref} AS bad\nRUN false\nFROM {busybox.ref} AS waits\nCOPY --from=bad /x /\n"
        f"FROM {busybox.ref} AS beside\nRUN sleep 60\nFROM scratch\nCOPY --from=waits /x /\nCOPY --from=beside /y /\n"
    )
    told = Told(kanifold, context({"Dockerfile": dockerfile}))
    assert told.code == 1
    ended = [each for each in told.messages if each["type"] == "step_finished" and each["error"]]
    assert ended == told.of("step_finished", "RUN false")
    assert told.of("step_finished", "COPY") == told.of("step_finished", "RUN sleep") == []


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ('["tool"]', ("permission denied", "check its mode")),
        ('["/usr/bin/tool"]', ("permission denied", "check its mode")),
        ("tool", ("exit code: 126", "check its mode")),
        ('["orphan"]', ("no such file or directory", "interpreter")),
        ('["nothing"]', ("executable file not found in $PATH", "the program is not in the stage")),
    ],
)
def test_a_program_that_cannot_be_executed_is_not_said_to_be_missing(
    kanifold: Kanifold, context: Context, busybox: Base, step: str, words: tuple[str, ...]
) -> None:
    copies = "COPY --chmod=644 tool /usr/bin/tool\nCOPY --chmod=755 orphan /usr/bin/orphan\n"
    dockerfile = f"FROM {busybox.ref}\n{copies}RUN {step}\n"
    files = {"Dockerfile": dockerfile, "tool": "#!/bin/sh\n", "orphan": "#!/no/interpreter\n"}
    failed = kanifold.run("build", context(files), "--platform", "linux/amd64")
    assert failed.code == 1
    for word in words:
        assert word in failed.err, failed.err
