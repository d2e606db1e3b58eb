"""Statements to instructions: every form and flag of the reference, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from executor.dockerfile import parse
from executor.dockerfile.instructions import Device, Heredoc, Instruction, Run, inline_script, shell_text
from platforms.errors import DockerfileError


def one(text: str, escape: str = "") -> Any:
    """The instruction ``text``, from a stage of its own."""
    (instruction,) = parse(f"{escape}FROM scratch\n{text}\n".encode()).stages[0].instructions
    return instruction


def values(instruction: Instruction) -> dict[str, Any]:
    """The fields that are not empty or what they are by default."""
    common = ("location", "original", "keyword", "comments")
    plain = ("", (), None, False, 0, "default", "sandbox")
    return {
        name: value
        for name in instruction.__struct_fields__
        if name not in common and (value := getattr(instruction, name)) not in plain
    }


CASES: list[tuple[str, dict[str, Any]]] = [
    ("RUN make all", {"command": ("make all",), "shell": True}),
    ("run make", {"command": ("make",), "shell": True}),
    ('RUN ["make", "all"]', {"command": ("make", "all")}),
    ("RUN [make, all]", {"command": ("[make, all]",), "shell": True}),
    ("RUN ['make']", {"command": ("['make']",), "shell": True}),
    ('RUN ["a"] && b', {"command": ('["a"] && b',), "shell": True}),
    ("RUN [NaN]", {"command": ("[NaN]",), "shell": True}),
    ("RUN", {"shell": True}),
    ("RUN --network=none -- --x", {"command": ("--x",), "shell": True, "network": "none"}),
    ("RUN --security=insecure x", {"command": ("x",), "shell": True, "security": "insecure"}),
    (
        "RUN --device=vendor.com/gpu=all,required x",
        {"command": ("x",), "shell": True, "devices": (Device(name="vendor.com/gpu=all", required=True),)},
    ),
    ("CMD top -b", {"command": ("top -b",), "shell": True}),
    ("CMD []", {}),
    ('ENTRYPOINT ["top", "\\u00e9"]', {"command": ("top", "é")}),
    ('SHELL ["/bin/bash", "-c"]', {"command": ("/bin/bash", "-c")}),
    ("COPY a b /c/", {"sources": ("a", "b"), "destination": "/c/"}),
    ('COPY ["a b", "c d"]', {"sources": ("a b",), "destination": "c d"}),
    (
        "COPY --from=Build --chown=1:2 --chmod=u+x --link --parents --exclude=*.c --exclude=d a /b",
        {
            "sources": ("a",),
            "destination": "/b",
            "from_": "Build",
            "chown": "1:2",
            "chmod": "u+x",
            "link": True,
            "parents": True,
            "exclude": ("*.c", "d"),
        },
    ),
    ("COPY --link=false a /b", {"sources": ("a",), "destination": "/b"}),
    ("COPY --link=TRUE a /b", {"sources": ("a",), "destination": "/b", "link": True}),
    ('COPY --chown="a:b" a /b', {"sources": ("a",), "destination": "/b", "chown": "a:b"}),
    (
        "COPY a <<-'X' b /c\n\tx\n\tX",
        {"sources": ("a", "b"), "destination": "/c", "heredocs": (Heredoc("X", "x\n", expand=False, chomp=True),)},
    ),
    (
        "ADD --checksum=sha256:1 --keep-git-dir=false --unpack https://x/y.tar /z",
        {"sources": ("https://x/y.tar",), "destination": "/z", "checksum": "sha256:1", "unpack": True},
    ),
    ("ENV a=1 b='2 3' c=4\\ 5", {"pairs": (("a", "1"), ("b", "'2 3'"), ("c", "4\\ 5"))}),
    ("ENV a 1 = 2", {"pairs": (("a", "1 = 2"),), "legacy": True}),
    ("ENV a=", {"pairs": (("a", ""),)}),
    ('LABEL "a.b"="c d" e=f', {"pairs": (('"a.b"', '"c d"'), ("e", "f"))}),
    ("LABEL a b c", {"pairs": (("a", "b c"),), "legacy": True}),
    ("ARG a b=1 c= d='x y'", {"assignments": (("a", None), ("b", "1"), ("c", ""), ("d", "'x y'"))}),
    ("EXPOSE 80 53/udp", {"ports": ("53/udp", "80")}),
    ('VOLUME ["/a", " /b "]', {"paths": ("/a", "/b")}),
    ("VOLUME /a /b", {"paths": ("/a", "/b")}),
    ("USER a:b", {"user": "a:b"}),
    ("USER a b", {"user": "a b"}),
    ("WORKDIR /a b", {"path": "/a b"}),
    ("STOPSIGNAL SIGTERM", {"signal": "SIGTERM"}),
    ("MAINTAINER A B <c@d>", {"name": "A B <c@d>"}),
    ("HEALTHCHECK NONE", {"kind": "none"}),
    ("HEALTHCHECK none", {"kind": "none"}),
    (
        'HEALTHCHECK --interval=1m30s --timeout=1.5s --start-period=2h --start-interval=5ms --retries=3 CMD ["a", "b"]',
        {
            "kind": "cmd",
            "command": ("a", "b"),
            "interval": 90 * 10**9,
            "timeout": 15 * 10**8,
            "start_period": 7200 * 10**9,
            "start_interval": 5 * 10**6,
            "retries": 3,
        },
    ),
    ("HEALTHCHECK --interval=0s CMD a || b", {"kind": "shell", "command": ("a || b",)}),
    ("ONBUILD run a", {"expression": "run a"}),
    ("onbuild   COPY <<E /x\nb\nE", {"expression": "COPY <<E /x\nb\nE"}),
    ("ONBUILD NONSENSE x", {"expression": "NONSENSE x"}),
]


@pytest.mark.parametrize(("text", "expected"), CASES, ids=[text for text, _ in CASES])
def test_forms(text: str, expected: dict[str, Any]) -> None:
    assert values(one(text)) == expected


def test_flags_that_may_be_unset_or_false() -> None:
    assert one("ADD --keep-git-dir=false a /b").keep_git_dir is False
    assert one("ADD a /b").keep_git_dir is None
    assert one("ADD --unpack=false a /b").unpack is False


def test_mounts_are_kept_as_text_until_expanded() -> None:
    run = one("RUN --mount=type=$T,target=/a --mount=from=Base,target=/b,nonsense x")
    assert isinstance(run, Run)
    assert [(mount.text, mount.from_) for mount in run.mounts] == [
        ("type=$T,target=/a", ""),
        ("from=Base,target=/b,nonsense", "Base"),
    ]


def test_the_original_is_the_logical_line() -> None:
    assert one("Run  a \\\n  # why\n  b").original == "Run  a   b"
    assert one("Run a").keyword == "Run"


def test_the_escape_directive_reaches_every_instruction() -> None:
    env = one('ENV a="c:\\dir" b=x`\n c=y` z', escape="# escape=`\n")
    assert env.pairs == (("a", '"c:\\dir"'), ("b", "x"), ("c", "y` z"))


@pytest.mark.parametrize(
    ("text", "given", "script"),
    [
        ("RUN <<E\na\nb\nE", "a\nb\n", None),
        ("RUN <<-E\n\ta\n\tE", "a\n", None),
        ("RUN <<E\n#!/bin/x\na\nE", "/dev/pipes/E", "#!/bin/x\na\n"),
        ("RUN <<-E\n\t#!/bin/x\n\tE", "/dev/pipes/E", "#!/bin/x\n"),
        ("RUN cat <<E >x\na\nE", "cat <<E >x\na\nE", None),
        ("RUN <<E cat\na\nE", "<<E cat\na\nE", None),
        ("RUN cat <<-A <<B\n\ta\n\tA\nb\nB", "cat <<-A <<B\n\ta\nA\nb\nB", None),
        ("RUN a", "a", None),
        ("RUN", "", None),
    ],
)
def test_what_the_shell_is_given(text: str, given: str, script: str | None) -> None:
    run = one(text)
    assert isinstance(run, Run)
    found = inline_script(run)
    assert (shell_text(run), found.content if found else None) == (given, script)


def refusals() -> list[tuple[str, str]]:
    table = (Path(__file__).parent / "refused.txt").read_text(encoding="utf-8")
    rows = [line.partition(" | ") for line in table.splitlines() if line and not line.startswith("#")]
    return [(text.strip().replace("\\n", "\n"), why) for text, _, why in rows]


@pytest.mark.parametrize(("text", "why"), refusals())
def test_refusals(text: str, why: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse(f"FROM scratch\n{text}\n".encode())
    problem = caught.value.problem
    assert problem.what == why
    assert problem.remedy
    assert problem.where is not None
    assert problem.where.line >= 2
    assert text.splitlines()[0] in problem.where.source
