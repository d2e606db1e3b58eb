"""Bake files give the plans that ``docker buildx bake --print`` prints for them: every key of every target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bake_inputs
import judges
import pytest
from bake_inputs import NO_ENVIRONMENT, PLANS, RECORDED, comparable, printed

from orchestrator.release.bake import bake_file
from orchestrator.release.bake.bake_target import ATTRIBUTES
from orchestrator.release.hcl.hcl_functions import FUNCTIONS
from orchestrator.release.model import ReleaseImage

PLANNED: dict[str, Any] = json.loads(RECORDED.read_text())
RANDOM = ("bcrypt", "rsadecrypt", "timestamp", "uuidv4", "homedir", "byteslen", "bytesslice")
"""Functions whose results differ each time, depend on the user, or take what no file can have."""

FIELDS = {"secret": "secrets", "output": "outputs"}
"""Fields of an image that are not called as the attribute is."""


def target(image: ReleaseImage) -> dict[str, Any]:
    """What bake prints of an image."""
    found = {}
    for attribute, kind in ATTRIBUTES.items():
        value: Any = getattr(image, FIELDS.get(attribute, attribute.replace("-", "_")), None)
        if kind in ("pairs", "resources"):
            value = dict(value)
        elif kind == "agents":
            value = [
                {**dict(each), **({"paths": dict(each)["paths"].split(",")} if len(each) > 1 else {})} for each in value
            ]
        elif isinstance(value, tuple):
            value = [each if isinstance(each, str) else dict(each) for each in value]
        if value not in (None, "", [], {}):
            found[attribute] = value
    return found


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_the_one_that_buildx_prints(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = PLANS[name]
    for file, text in plan.files.items():
        (tmp_path / file).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(NO_ENVIRONMENT, "1")

    release = bake_file.read(plan.read(), {}, plan.sets)
    found = comparable({each.name: target(each) for each in release.images})

    for each, wanted in PLANNED[name].items():
        if wanted.get("output") == [{"type": "cacheonly"}]:  # only other targets need it
            found[each]["output"] = wanted["output"]
        assert found[each] == wanted, each


def test_the_expressions_call_all_functions() -> None:
    called = bake_inputs.EXPRESSIONS
    assert [each for each in FUNCTIONS if f"{each}(" not in called and each not in RANDOM] == []


@pytest.mark.slow
@judges.needs("buildx")
@pytest.mark.parametrize("name", PLANS)
def test_buildx_still_prints_what_was_recorded(name: str, tmp_path: Path) -> None:
    assert printed(PLANS[name], tmp_path, judges.find("buildx")) == PLANNED[name]
