"""Names of contexts match as references do: whatever the spelling, here and in the Dockerfile."""

from __future__ import annotations

import pytest

from executor.solver.named import Named, canonical
from platforms.errors import UsageError
from platforms.parsing import parse

DEBIAN = (
    "debian",
    "debian:latest",
    "library/debian",
    "library/debian:latest",
    "docker.io/debian",
    "docker.io/debian:latest",
    "docker.io/library/debian",
    "docker.io/library/debian:latest",
    "index.docker.io/debian",
    "index.docker.io/debian:latest",
    "index.docker.io/library/debian",
    "index.docker.io/library/debian:latest",
)
DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize("given", DEBIAN)
@pytest.mark.parametrize("written", DEBIAN)
def test_all_spellings_of_a_name_are_one(given: str, written: str) -> None:
    assert Named(frozenset({canonical(given)})).find(written) == "debian"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("debian:12", "debian:12"),
        ("docker.io/library/debian:12", "debian:12"),
        ("docker.io/org/app", "org/app"),
        ("org/app:latest", "org/app"),
        ("docker.io/library/deep/app", "library/deep/app"),
        ("ghcr.io/org/app:latest", "ghcr.io/org/app"),
        ("localhost:5000/app", "localhost:5000/app"),
        ("[::1]:5000/app", "[::1]:5000/app"),
        ("Stage", "stage"),
        ("debian:Bookworm", "debian:Bookworm"),
        (f"docker.io/library/debian@{DIGEST}", f"debian@{DIGEST}"),
        (f"library/debian:12@{DIGEST}", f"debian:12@{DIGEST}"),
        ("docker.io/library/debian::linux/arm64/v8", "debian::linux/arm64"),
        ("debian:12::arm64", "debian:12::linux/arm64"),
        ("[::1]:5000/app::arm64", "[::1]:5000/app::linux/arm64"),
    ],
)
def test_the_canonical_name(text: str, name: str) -> None:
    assert canonical(text) == name
    assert canonical(name) == name


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("debian", "debian:12"),
        ("debian:12", "debian"),
        ("debian:12", f"debian:12@{DIGEST}"),
        ("debian", f"debian@{DIGEST}"),
        (f"debian@{DIGEST}", "debian"),
        ("org/debian", "debian"),
        ("ghcr.io/library/debian", "debian"),
        ("app:V1", "app:v1"),
        ("debian::linux/arm64", "debian"),
    ],
)
def test_other_names_are_other_names(given: str, written: str) -> None:
    assert Named(frozenset({canonical(given)}), parse("linux/amd64")).find(written) == ""


@pytest.mark.parametrize("text", ["", "a b", "a:", "-a", "a//b", "ghcr.io/Org/app", "a::nonsense/x/y/z/w"])
def test_what_cannot_be_a_name(text: str) -> None:
    with pytest.raises(UsageError):
        canonical(text)
