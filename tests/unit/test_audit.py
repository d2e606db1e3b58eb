"""The architecture audit: which findings are wrong for a platform, and which somebody has declared to be intended."""

from __future__ import annotations

import pytest

from executor.dockerfile import parse as parse_dockerfile
from executor.protocol import Finding
from orchestrator import audit
from orchestrator.request import Allowed
from platforms.parsing import parse

ARM64, AMD64 = parse("linux/arm64"), parse("linux/amd64")
LAYER = "sha256:" + "ab" * 32


def finding(path: str, machine: str) -> Finding:
    return Finding(LAYER, path, machine)


@pytest.mark.parametrize(
    ("platform", "machine", "wrong"),
    [
        ("linux/arm64", "amd64", True),
        ("linux/arm64", "arm64", False),
        ("linux/arm64", "arm", True),
        ("linux/amd64", "386", False),
        ("linux/386", "amd64", True),
        ("linux/arm/v7", "arm", False),
        ("linux/arm64", "EM_83", False),
        ("linux/s390x", "s390", True),
    ],
)
def test_what_is_wrong_where(platform: str, machine: str, wrong: bool) -> None:
    found = audit.audit(parse(platform), [finding("opt/x", machine)], ())
    assert bool(found) is wrong


@pytest.mark.parametrize(
    ("pattern", "allows"),
    [
        ("/opt/tool", True),
        ("opt/tool", True),
        ("/opt", True),
        ("/opt/**", True),
        ("**/tool", True),
        ("/opt/*", True),
        ("/usr", False),
        ("/opt/too", False),
        ("/tool", False),
    ],
)
def test_what_is_intended(pattern: str, allows: bool) -> None:
    found = audit.audit(ARM64, [finding("opt/tool", "amd64")], [Allowed(pattern)])
    assert (not found) is allows


def test_an_exception_may_be_for_one_platform() -> None:
    both = [Allowed("/opt/**", "linux/amd64")]
    assert audit.audit(ARM64, [finding("opt/tool", "amd64")], both)
    assert not audit.audit(AMD64, [finding("opt/tool", "arm64")], both)


def test_comments_of_the_dockerfile_allow() -> None:
    text = b"""\
# kanifold audit-allow=/opt/firmware/**
FROM scratch
#kanifold  audit-allow = [linux/arm64]/usr/lib/x86
# kanifold audit-allows=/typo
# about kanifold audit-allow=/in/a/sentence
RUN echo '# kanifold audit-allow=/quoted'
"""
    found = audit.allowed_by(parse_dockerfile(text))
    assert found == (Allowed("/opt/firmware/**"), Allowed("/usr/lib/x86", "linux/arm64"))


def test_a_comments_platform_is_read_as_flags_are() -> None:
    found = audit.allowed_by(parse_dockerfile(b"# kanifold audit-allow=[arm64]/x\nFROM scratch\n"))
    assert not audit.audit(ARM64, [finding("x", "amd64")], found)


def test_the_problem_names_layer_path_and_machine() -> None:
    problem = audit.problem(ARM64, tuple(finding(f"bin/{number}", "amd64") for number in range(9)))
    assert "linux/arm64" in problem.what
    assert "/bin/0 is amd64" in problem.why
    assert LAYER[:19] in problem.why
    assert "4 more" in problem.why
    assert "--audit-allow" in problem.remedy
