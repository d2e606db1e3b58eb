"""Build checks as the command has them: what they learn from base images, what they print, how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Base, Kanifold

SOURCE = """\
FROM {ref} AS base
COPY $PATH $PAHT /x/
FROM base
CMD start
"""


def check(kanifold: Kanifold, source: str, *arguments: str) -> tuple[int, list[tuple[int, str]], dict[str, object]]:
    """The exit status, line and rule of each finding, and the whole document."""
    context = kanifold.home / "context"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text(source)
    done = kanifold.run("build", context, "--call", "check,format=json", *arguments)
    document = json.loads(done.out)
    found = [(each["location"]["ranges"][0]["start"]["line"], each["ruleName"]) for each in document["warnings"]]
    return done.code, found, document.get("buildError", {})


def single(busybox: Base, architecture: str) -> str:
    """The digest reference of one platform's manifest."""
    index = json.loads((busybox.layout / "blobs/sha256" / busybox.digest.partition(":")[2]).read_text())
    digest = next(each["digest"] for each in index["manifests"] if each["platform"]["architecture"] == architecture)
    return f"{busybox.ref.rpartition(':')[0]}@{digest}"


def test_variables_of_the_base_image_are_known(kanifold: Kanifold, busybox: Base) -> None:
    code, found, _ = check(kanifold, SOURCE.format(ref=busybox.ref))
    assert (code, found) == (1, [(2, "UndefinedVar"), (4, "JSONArgsRecommended")])


def test_a_base_that_cannot_be_reached_is_not_known(kanifold: Kanifold, registry: str) -> None:
    code, found, _ = check(kanifold, SOURCE.format(ref=f"{registry}/no/such:image"))
    assert (code, found) == (1, [(4, "JSONArgsRecommended")])


@pytest.mark.parametrize(
    ("platforms", "expected"),
    [
        ("linux/amd64,linux/arm64", [(1, "SinglePlatformDigest")]),
        ("linux/arm64", [(1, "InvalidBaseImagePlatform"), (1, "SinglePlatformDigest")]),
        ("linux/amd64", []),
    ],
)
def test_a_base_pinned_to_one_platform(
    kanifold: Kanifold, busybox: Base, platforms: str, expected: list[tuple[int, str]]
) -> None:
    code, found, _ = check(kanifold, f"FROM {single(busybox, 'amd64')}\n", "--platform", platforms)
    assert (code, found) == (int(bool(expected)), expected)


def test_a_build_warns_of_it_too(kanifold: Kanifold, busybox: Base, tmp_path: Path) -> None:
    context = kanifold.folder("context")
    (context / "Dockerfile").write_text(f"FROM {single(busybox, 'amd64')}\nLABEL a=$NOTHING\n")
    output = f"type=oci,dest={tmp_path / 'layout'},tar=false"
    command = ("build", context, "--platform", "linux/amd64,linux/arm64", "--output", output, "--progress", "plain")
    for _ in ("built", "cached"):
        done = kanifold(*command)
        for rule in ("SinglePlatformDigest", "UndefinedVar", "InvalidBaseImagePlatform"):
            assert rule in done.said


def test_findings_that_fail_a_build_do_so_before_anything_runs(kanifold: Kanifold, busybox: Base) -> None:
    context = kanifold.folder("context")
    (context / "Dockerfile").write_text(
        f"# check=error=true\nFROM {busybox.ref} as a\nRUN echo $((40 + 2)) ran; false\n"
    )
    done = kanifold.run("build", context, "-o", "type=oci,dest=out", "--progress", "plain")
    assert done.code == 1
    assert "lint violation found for rules: FromAsCasing" in done.said
    assert "42 ran" not in done.said


def test_all_stages_are_checked_unless_one_is_the_target(kanifold: Kanifold) -> None:
    source = "FROM scratch AS one\nCOPY $A /x\nFROM scratch AS two\nCOPY $B /x\n"
    assert check(kanifold, source)[1] == [(2, "UndefinedVar"), (4, "UndefinedVar")]
    assert check(kanifold, source, "--target", "one")[1] == [(2, "UndefinedVar")]


@pytest.mark.parametrize(
    ("source", "found", "says", "line"),
    [
        ("FROM scratch as a\nRUNN x\n", [(1, "FromAsCasing")], "unknown instruction: RUNN (did you mean RUN?)", 2),
        ("FROM scratch as a\nCOPY --from=7 / /\n", [(1, "FromAsCasing")], "invalid stage index 7", 2),
        ("FROM scratch as a\nEXPOSE x\n", [(1, "FromAsCasing")], "invalid containerPort: x", 2),
        ("FROM scratch\nCOPY --chmod=999 a /\n", [], "invalid chmod parameter: '999'", 2),
        ("FROM scratch\nCOPY --link --chown=a a /\n", [], "names can't be resolved", 2),
        ("FROM scratch\nCOPY https://x/y /\n", [], "source can't be a URL for COPY", 2),
        ("FROM scratch\nADD --checksum=sha256:00 a /\n", [], "checksum requires HTTP(S) or Git sources", 2),
        ("# check=error=true\nFROM scratch as a\n", [(2, "FromAsCasing")], "lint violation found for rules", 0),
        (
            "FROM scratch AS Stage\nMAINTAINER me\nBADCMD\n",
            [(1, "StageNameCasing"), (2, "MaintainerDeprecated")],
            "unknown instruction: BADCMD",
            3,
        ),
        ("# check=nothing\nFROM scratch\n", [], 'invalid check option "nothing"', 0),
    ],
)
def test_what_would_fail_a_build_is_in_the_document(
    kanifold: Kanifold, source: str, found: list[tuple[int, str]], says: str, line: int
) -> None:
    code, seen, error = check(kanifold, source)
    assert (code, seen) == (1, found)
    assert says in str(error["message"])
    ranges = error["location"].get("ranges", [])  # type: ignore[attr-defined]
    assert [each["start"]["line"] for each in ranges] == ([line] if line else [])


def test_a_build_arg_stands_in_for_the_directive(kanifold: Kanifold) -> None:
    source = "# check=skip=all\nFROM scratch as a\ncopy Dockerfile .\n"
    given = "BUILDKIT_DOCKERFILE_CHECK=skip=ConsistentInstructionCasing;error=true"
    code, found, error = check(kanifold, source, "--build-arg", given)
    assert (code, found) == (1, [(2, "FromAsCasing")])
    assert "lint violation" in str(error["message"])
    assert kanifold.run("build", kanifold.home / "context", "--build-arg", given).code == 1
    source = source.replace("skip=all", "error=true")
    assert check(kanifold, source, "--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=all") == (0, [], {})
    assert kanifold.run("build", kanifold.home / "context").code == 1


def test_a_clean_dockerfile_ends_with_0(kanifold: Kanifold) -> None:
    assert check(kanifold, 'FROM scratch\nCMD ["x"]\n') == (0, [], {})
    context = kanifold.home / "context"
    done = kanifold("build", context, "--check")
    assert "no warnings" in done.out


def asked(kanifold: Kanifold, source: str, method: str, *arguments: str) -> tuple[int, str, str]:
    """The exit status and both outputs of ``--call method``."""
    context = kanifold.home / "context"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text(source)
    done = kanifold.run("build", context, "--call", method, *arguments)
    return done.code, done.out, done.err


@pytest.mark.parametrize("method", ["outline", "outline,format=json"])
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("ARG BASE\nFROM $BASE\n", "base name ($BASE) should not be blank"),
        ('FROM scratch\nLABEL a="b$(c\n', "Dockerfile:2"),
        ("FROM scratch\nUSER 'a\n", "Dockerfile:2"),
        ('FROM "scratch\n', "Dockerfile:1"),
        ("FROM scratch\nCOPY --chmod=999 a /\n", "invalid chmod"),
        ("FROM scratch\nCOPY --from=7 a /\n", "invalid stage index 7"),
        ("FROM scratch\nADD --checksum=sha256:12 http://x/y /\n", "invalid checksum"),
        ("# check=error=true\nFROM scratch as x\n", "lint violation found for rules: FromAsCasing"),
        ("# check=nonsense=true\nFROM scratch\n", "check"),
    ],
)
def test_an_outline_is_refused_where_a_build_would_be(kanifold: Kanifold, method: str, source: str, words: str) -> None:
    code, out, err = asked(kanifold, source, method)
    assert (code, out) == (1, "")
    assert words in err


def test_an_outline_is_of_what_can_be_built(kanifold: Kanifold, registry: str, busybox: Base) -> None:
    for source in (
        "ARG BASE=scratch\nFROM $BASE\n",
        "FROM scratch AS unused\nUSER 'a\nFROM scratch\n",
        "# check=error=true;skip=FromAsCasing\nFROM scratch as x\n",
        "# check=error=true\nFROM scratch AS x\n",
        f"FROM {registry}/no/such:image\nUSER $NOBODY\n",
    ):
        assert asked(kanifold, source, "outline")[0] == 0
    assert asked(kanifold, "ARG BASE\nFROM $BASE\n", "outline", "--build-arg", "BASE=scratch")[0] == 0
    # What the base image sets counts.
    assert asked(kanifold, f"FROM {busybox.ref}\nVOLUME $PATH\n", "outline")[0] == 0
    assert "VOLUME" in asked(kanifold, f"FROM {busybox.ref}\nVOLUME $NOBODY\n", "outline")[2]
    source = f"# check=error=true\nFROM {busybox.ref}\nUSER $NOBODY\n"
    assert "UndefinedVar" in asked(kanifold, source, "outline")[2]
    assert asked(kanifold, source.replace("NOBODY", "PATH"), "outline")[0] == 0


def test_targets_are_what_the_text_says(kanifold: Kanifold) -> None:
    """BuildKit lists them without looking at what the words come to."""
    source = "# check=error=true\nARG BASE\nFROM $BASE as one\nFROM scratch AS two\n"
    code, out, _ = asked(kanifold, source, "targets")
    assert (code, out.split()) == (0, ["one", "two", "(default)"])
    code, out, err = asked(kanifold, "FROM scratch\nBUILD now\n", "targets")
    assert (code, out) == (1, "")
    assert "Dockerfile:2" in err
