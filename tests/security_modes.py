"""Attacks on builds, each in every mode in which steps run: that of the machine, and those without namespaces."""

from __future__ import annotations

import re

import pytest

MODES = (10, 11, 26, 28, 30, 31, 45, 47, 50)
"""Numbers of the attacks whose builds run steps that mount, read or leave something."""

EACH = ["", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("chroot", "answered"))]
"""Parameters of the fixture ``isolation``."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    attack = re.match(r"test_security_(\d+)_", metafunc.module.__name__)
    if attack and int(attack[1]) in MODES and "kanifold" in metafunc.fixturenames:
        metafunc.fixturenames.append("isolation")
        metafunc.parametrize("isolation", EACH, indirect=True)


@pytest.fixture
def isolation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The mode that builds ask for; "" for the first that works."""
    mode: str = request.param
    if mode:
        monkeypatch.setenv("KANIFOLD_ISOLATION", mode)
    return mode
