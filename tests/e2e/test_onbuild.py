"""ONBUILD: what a base image's triggers do, and how their steps are shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Base, Kanifold, Reader

Context = Callable[[Mapping[str, str | bytes]], Path]


def _base(kanifold: Kanifold, busybox: Base, context: Context, triggers: str) -> str:
    """A base image with ``triggers``, as a place for ``--build-context``."""
    place = kanifold.home / "base"
    kanifold("build", context({"Dockerfile": f"FROM {busybox.ref}\n{triggers}"}), "-o", f"type=oci,dest={place}")
    return f"oci-layout://{place}"


def test_each_trigger_is_a_step_of_its_own(kanifold: Kanifold, busybox: Base, context: Context) -> None:
    base = _base(kanifold, busybox, context, "ONBUILD RUN echo one\nONBUILD RUN echo two\nONBUILD RUN echo three\n")
    built = kanifold(
        "build", context({"Dockerfile": "FROM base\nRUN echo four\n"}), "--build-context", f"base={base}",
        "--progress", "rawjson", "-o", f"type=oci,dest={kanifold.home / 'out'}",
    )  # fmt: skip
    said = [json.loads(line) for line in built.said.splitlines() if line.startswith("{")]
    names = {step["id"]: step["name"] for each in said if each["type"] == "planned" for step in each["steps"]}
    done = [names[each["step"]] for each in said if each["type"] == "step_finished"]
    assert done == ["FROM base", "RUN echo one", "RUN echo two", "RUN echo three", "RUN echo four"]
    logs = [(names[each["step"]], each["text"]) for each in said if each["type"] == "log"]
    assert logs == [(f"RUN echo {word}", word) for word in ("one", "two", "three", "four")]


def test_a_stage_that_only_a_trigger_needs_is_replaced_by_the_context_of_its_name(
    kanifold: Kanifold, busybox: Base, context: Context, read: Reader
) -> None:
    base = _base(kanifold, busybox, context, "ONBUILD COPY --from=tools /tool /tool\n")
    tools = kanifold.home / "tools"
    kanifold("build", context({"Dockerfile": "FROM scratch\nCOPY tool /\n", "tool": "the context's"}),
             "-o", f"type=oci,dest={tools}")  # fmt: skip
    out = kanifold.home / "out"
    dockerfile = f"FROM {busybox.ref} AS tools\nRUN echo the stage's > /tool; exit 1\nFROM base\n"
    kanifold(
        "build", context({"Dockerfile": dockerfile}), "--build-context", f"base={base}",
        "--build-context", f"tools=oci-layout://{tools}", "--platform", "linux/amd64", "-o", f"type=oci,dest={out}",
    )  # fmt: skip
    assert read(out, "linux/amd64").text("tool") == "the context's"
