"""The recipe of kanifold's own image has everything that kanifold needs to run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = {"pyyaml": "python3-yaml"}
"""Packages of Debian that have another name than the distribution."""


def test_every_dependency_is_in_the_image() -> None:
    recipe = (ROOT / "ci/image.Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[^\w-]", each)[0] for each in project["dependencies"]]
    missing = [
        name
        for name in names
        if not re.search(rf"\b{DEBIAN.get(name, f'python3-{name}')}\b", recipe) and f"\n{name}==" not in recipe
    ]
    assert missing == []


def test_what_is_not_debians_is_pinned_by_its_digest() -> None:
    recipe = (ROOT / "ci/image.Dockerfile").read_text()
    pinned = re.findall(r"^[\w-]+==.*$", recipe, re.M)
    assert len(pinned) == 4
    assert all(re.fullmatch(r"[\w-]+==[\d.]+(?: --hash=sha256:[0-9a-f]{64})+", each) for each in pinned)
