"""Build checks: each rule where it applies and where it does not, options, reports and their JSON form."""

from __future__ import annotations

import base64

import pytest

from executor.dockerfile import parse
from executor.dockerfile.checks import BaseImage, CheckedBuild, CheckResult, check
from executor.dockerfile.documents import lint_document
from executor.dockerfile.ignore import NOTHING, Patterns
from executor.dockerfile.ignore import parse as parse_ignore
from executor.dockerfile.rules import RULES, Options, options
from platforms.errors import DockerfileError

PREDEFINED = {
    "BUILDPLATFORM": "linux/amd64",
    "BUILDARCH": "amd64",
    "TARGETPLATFORM": "linux/arm64",
    "TARGETOS": "linux",
    "TARGETARCH": "arm64",
}
BOTH = ("linux/amd64", "linux/arm64")


def report(
    source: str,
    *,
    build_args: dict[str, str] | None = None,
    targets: tuple[str, ...] = (),
    bases: dict[int, BaseImage] | None = None,
    ignore: Patterns = NOTHING,
    stages: tuple[int, ...] | None = None,
) -> CheckResult:
    build = CheckedBuild(
        build_args=build_args or {},
        predefined=PREDEFINED,
        targets=targets,
        bases=bases or {},
        ignore=ignore,
        stages=None if stages is None else frozenset(stages),
    )
    return check(parse(source.encode()), build)


def found(source: str, **known: object) -> list[tuple[int, str]]:
    """Line and rule of every finding."""
    return [(each.location.line, each.rule.name) for each in report(source, **known).violations]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("FROM a AS Build", [(1, "StageNameCasing")]),
        ("FROM a AS build", []),
        ("FROM a as b", [(1, "FromAsCasing")]),
        ("from a as b", []),
        ("from a AS b", [(1, "FromAsCasing")]),
        ("From a as b", [(1, "ConsistentInstructionCasing")]),
        ("FROM a\nRUN b \\\n\n c", [(4, "NoEmptyContinuation")]),
        ("FROM a\nRUN b\nrun c", [(3, "ConsistentInstructionCasing")]),
        ("from a\nrun b\nRUN c", [(3, "ConsistentInstructionCasing")]),
        ("FROM a\nrun b", [(2, "ConsistentInstructionCasing")]),
        ("FROM a AS b\nFROM a AS b", [(2, "DuplicateStageName")]),
        ("FROM a AS scratch", [(1, "ReservedStageName")]),
        ("FROM a AS context", [(1, "ReservedStageName")]),
        ("FROM a\nMAINTAINER x", [(2, "MaintainerDeprecated")]),
        ("FROM a\nCMD b", [(2, "JSONArgsRecommended")]),
        ("FROM a\nENTRYPOINT b", [(2, "JSONArgsRecommended")]),
        ('FROM a\nSHELL ["/bin/bash", "-c"]\nCMD b', []),
        ('FROM a\nCMD ["b"]\nCMD ["c"]', [(2, "MultipleInstructionsDisallowed")]),
        ("FROM a\nHEALTHCHECK NONE\nHEALTHCHECK CMD c", [(2, "MultipleInstructionsDisallowed")]),
        ('FROM a AS b\nCMD ["b"]\nFROM b\nCMD ["c"]', []),
        ("FROM a\nWORKDIR b", [(2, "WorkdirRelativePath")]),
        ("FROM a\nWORKDIR /b\nWORKDIR c", []),
        ("FROM a AS b\nWORKDIR /b\nFROM b\nWORKDIR c", []),
        ("FROM a\nENV b c", [(2, "LegacyKeyValueFormat")]),
        ("FROM a\nLABEL b c", [(2, "LegacyKeyValueFormat")]),
        ("FROM a\nEXPOSE 80/TCP", [(2, "ExposeProtoCasing")]),
        ("FROM a\nEXPOSE 1:2", [(2, "ExposeInvalidFormat")]),
        ("FROM a\nEXPOSE 127.0.0.1:1:2 80", [(2, "ExposeInvalidFormat")]),
        ("FROM a\nARG TOKEN\nENV DB_PASSWORD=x", [(2, "SecretsUsedInArgOrEnv"), (3, "SecretsUsedInArgOrEnv")]),
        ("FROM a\nARG TOKEN_FILE PUBLIC_KEY KEYBOARD", []),
        ("FROM --platform=$TARGETPLATFORM a", [(1, "RedundantTargetPlatform")]),
        ("FROM --platform=linux/$TARGETARCH a", []),
        ("FROM --platform=linux/amd64 a", [(1, "FromPlatformFlagConstDisallowed")]),
        ("FROM --platform=linux/amd64 a AS tools-amd64", []),
        ("FROM --platform=$BUILDPLATFORM a", []),
        ("FROM a:$V", [(1, "InvalidDefaultArgInFrom"), (1, "UndefinedArgInFrom")]),
        ("ARG V=1\nFROM a:$V", []),
        ("FROM a:${V:-1}", [(1, "UndefinedArgInFrom")]),
        ("FROM a-$TARGETARCH", []),
    ],
)
def test_rules(source: str, expected: list[tuple[int, str]]) -> None:
    assert found(source) == expected


def test_findings_word_what_they_found() -> None:
    source = "ARG VERSION\nFROM a:1$VERSIN AS b\nFROM scratch\nARG PORT=1\nUSER $PROT"
    assert [each.message for each in report(source).violations] == [
        "FROM argument 'VERSIN' is not declared (did you mean VERSION?)",
        "Usage of undefined variable '$PROT' (did you mean $PORT?)",
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("FROM a AS B", "Stage name 'B' should be lowercase"),
        ("FROM a as b", "'as' and 'FROM' keywords' casing do not match"),
        ("from a\nrun b\nRUN c", "Command 'RUN' should match the case of the command majority (lowercase)"),
        ("FROM a\nWORKDIR b", 'Relative workdir "b" can have unexpected results if the base image changes'),
        ("FROM a\nenv B c\nENV D=e F=g", '"env key=value" should be used instead of legacy "env key value" format'),
        ("FROM a\nENV TOKEN=b", 'Do not use ARG or ENV instructions for sensitive data (ENV "TOKEN")'),
    ],
)
def test_findings_are_worded_as_docker_words_them(source: str, message: str) -> None:
    assert message in [each.message for each in report(source).violations]


@pytest.mark.parametrize(
    ("source", "rule"),
    [("FROM $NOTHING", "UndefinedArgInFrom"), ('FROM scratch\nUSER "${X?}"', "UndefinedVar")],
)
def test_what_is_found_before_a_failure_counts(source: str, rule: str) -> None:
    seen = report(source)
    assert seen.failure is not None
    assert rule in [each.rule.name for each in seen.violations]


def test_build_args_do_not_hide_bad_defaults() -> None:
    source = "ARG V\nFROM $V"
    assert found(source, build_args={"V": "a"}) == [(2, "InvalidDefaultArgInFrom")]


JAVA = {0: BaseImage(env={"JAVA_HOME": "/j"})}


@pytest.mark.parametrize(
    ("source", "bases", "expected"),
    [
        ("FROM scratch\nCOPY $X /x", None, [2]),
        ("FROM scratch\nENV PATH=$PATH:/x", None, []),
        ("FROM scratch\nARG X\nCOPY $X /x", None, []),
        ("FROM scratch\nENV X=1\nCOPY $X /x", None, []),
        ("FROM scratch\nENV X=1 Y=$X", None, [2]),
        ("FROM scratch\nARG X=1 Y=$X", None, []),
        ("FROM scratch\nARG X=$Y", None, [2]),
        ("ARG X=1\nFROM scratch\nCOPY $X /x", None, [3]),
        ("FROM scratch AS a\nARG X=1\nFROM a\nCOPY $X /x", None, []),
        ("FROM scratch\nCOPY <<E /x\n$X\nE", None, [2]),
        ("FROM scratch\nCOPY <<'E' /x\n$X\nE", None, []),
        ("FROM scratch\nRUN echo $X", None, []),
        ("FROM scratch\nRUN --mount=type=cache,target=$X true", None, [2]),
        ("FROM scratch\nEXPOSE ${X:-80}", None, []),
        ("FROM a\nCOPY $X /x", None, []),  # the base image may set it
        ("FROM a\nCOPY $X /x", JAVA, [2]),
        ("FROM a\nCOPY $JAVA_HOME /x", JAVA, []),
    ],
)
def test_undefined_variables(source: str, bases: dict[int, BaseImage] | None, expected: list[int]) -> None:
    assert found(source, bases=bases) == [(line, "UndefinedVar") for line in expected]


@pytest.mark.parametrize(
    ("patterns", "source", "expected"),
    [
        ("b", "COPY b /x", True),
        ("b", "COPY ./b/c /x", True),
        ("b", "ADD b /x", True),
        ("*.md", "COPY *.md /x", True),
        ("*", "COPY . /x", True),
        ("b", "COPY . /x", False),
        ("b", "COPY c /x", False),
        ("b\n!b/c", "COPY b /x", False),
        ("b", "COPY --from=z b /x", False),
        ("b", "ADD https://b/b /x", False),
        ("", "COPY b /x", False),
    ],
)
def test_sources_that_the_ignore_file_excludes(patterns: str, source: str, expected: bool) -> None:
    rules = found(f"FROM a\n{source}", ignore=parse_ignore(patterns))
    assert rules == ([(2, "CopyIgnoredFile")] if expected else [])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("# a the a\nARG a\n# b the b\nFROM x AS b", []),
        ("# other\nARG a", [2]),
        ("# other\n#\nARG a", []),
        ("# other\nFROM x AS b", [2]),
        ("# other\nFROM x", []),
        ("# b the b\nARG a=1 b=2", []),
        ("FROM x\n# other\nRUN y", []),
    ],
)
def test_descriptions_are_looked_at_on_demand(source: str, expected: list[int]) -> None:
    source = source if "FROM" in source else f"{source}\nFROM x"
    assert found(source) == []
    wanted = found(f"# check=experimental=InvalidDefinitionDescription\n{source}")
    assert wanted == [(line + 1, "InvalidDefinitionDescription") for line in expected]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("", ["FromAsCasing", "JSONArgsRecommended"]),
        ("# check=skip=FromAsCasing\n", ["JSONArgsRecommended"]),
        ("# check=skip=FromAsCasing,JSONArgsRecommended\n", []),
        ("# check=skip=all\n", []),
        ("# check=error=true;skip=JSONArgsRecommended\n", ["FromAsCasing"]),
    ],
)
def test_rules_can_be_skipped(head: str, expected: list[str]) -> None:
    assert [name for _, name in found(f"{head}FROM a as b\nCMD c")] == expected


def test_rules_can_be_skipped_for_one_instruction() -> None:
    source = "FROM a\n# check=skip=JSONArgsRecommended\nCMD b\nENTRYPOINT c"
    assert found(source) == [(4, "JSONArgsRecommended")]


@pytest.mark.parametrize(
    ("source", "fails"),
    [
        ("# check=error=true\nFROM a as b", True),
        ("# check=error=true\nFROM a AS b", False),
        ("# check=error=false\nFROM a as b", False),
        ("FROM a as b", False),
        ("FROM $X", True),
        ("FROM a\nEXPOSE x", True),
    ],
)
def test_what_fails_a_build(source: str, fails: bool) -> None:
    found = report(source)
    assert (found.failure is not None or found.refusal is not None) is fails


def test_a_failure_is_reported_with_what_was_found_before() -> None:
    seen = report("FROM a as b\nEXPOSE x")
    assert [each.rule.name for each in seen.violations] == ["FromAsCasing"]
    assert seen.failure is not None
    assert (seen.failure.what, seen.failure.where and seen.failure.where.line) == ("invalid containerPort: x", 2)


@pytest.mark.parametrize("text", ["skip", "skp=all", "error=maybe", "skip=A;error"])
def test_options_that_make_no_sense(text: str) -> None:
    with pytest.raises(DockerfileError, match="invalid check option") as caught:
        options(text)
    assert caught.value.problem.remedy
    with pytest.raises(DockerfileError):
        report(f"# check={text}\nFROM a")


def test_options_replace_the_directive() -> None:
    dockerfile = parse(b"# check=skip=all\nFROM a as b")
    seen = check(dockerfile, CheckedBuild(build_args={}, predefined=PREDEFINED), Options())
    assert [each.rule.name for each in seen.violations] == ["FromAsCasing"]


def test_stages_that_a_build_does_not_need_are_left_alone() -> None:
    source = "FROM scratch AS a\nCOPY $X /x\nFROM scratch\nCOPY $Y /y"
    assert found(source, stages=(1,)) == [(4, "UndefinedVar")]


# -- traps of building for several platforms --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("ARG TARGETARCH=amd64\nFROM a", 1),
        ("FROM a\nARG TARGETARCH=amd64", 2),
        ("FROM a\nARG TARGETPLATFORM=linux/amd64", 2),
        ("FROM a\nARG TARGETARCH=${TARGETARCH:-amd64}", 2),
        ("ARG TARGETARCH=${TARGETARCH:-amd64}\nFROM a", 0),
        ("FROM a\nARG TARGETARCH\nARG TARGETARCH=${TARGETARCH:-amd64}", 0),
        ("FROM a\nARG TARGETARCH", 0),
        ("FROM a\nARG TARGETSTAGE=x MYARCH=amd64", 0),
    ],
)
def test_a_default_for_a_platform_arg(source: str, line: int) -> None:
    assert found(source) == ([(line, "PlatformArgDefault")] if line else [])


@pytest.mark.parametrize(
    ("platform", "command", "expected"),
    [
        ("$BUILDPLATFORM", "case $(uname -m) in x) ;; esac", True),
        ("$BUILDPLATFORM", "dpkg --print-architecture", True),
        ("${BUILDPLATFORM}", "curl x/`arch`", True),
        ("linux/$BUILDARCH", "apk --print-arch", True),
        ("$BUILDPLATFORM", '["uname", "-m"]', True),
        ("$BUILDPLATFORM", "uname --machine", True),
        ("$BUILDPLATFORM", "set -x; arch > /a", True),
        ("$BUILDPLATFORM", "make arch; ./arch; echo arch", False),
        ("$BUILDPLATFORM", "echo $TARGETARCH; uname -m", False),
        ("$BUILDPLATFORM", "uname -r; make arch", False),
        ("$TARGETPLATFORM", "uname -m", False),
    ],
)
def test_asking_the_machine_in_a_build_stage(platform: str, command: str, expected: bool) -> None:
    source = f"# check=skip=RedundantTargetPlatform\nFROM --platform={platform} a\nRUN {command}"
    assert found(source, targets=BOTH) == ([(3, "BuildMachineAsked")] if expected else [])
    assert found(source, targets=("linux/amd64",)) == []


BUILD_STAGE = """\
FROM --platform=$BUILDPLATFORM a AS b
WORKDIR /src
COPY . .
{}
FROM scratch
ARG V=1
COPY --from=b {} /x
"""

COMES_TO_THE_TARGET = {
    "downloaded to it": ("RUN curl -o /out/tool https://x/tool-$(uname -m)", "/out/tool"),
    "by a variable": ("RUN A=$(uname -m) && curl -fsSL https://x/$A.tgz | tar -xz -C /out", "/out/"),
    "by a branch": (
        "RUN case $(uname -m) in x86_64) A=amd64;; aarch64) A=arm64;; esac; curl -o /out/t https://x/$A", "/out",
    ),
    "by if": ("RUN if [ \"$(uname -m)\" = x86_64 ]; then curl -o /out/t https://x/a; fi", "/out"),
    "by a test": ("RUN uname -m | grep -q x86 && cp /amd64 /out/t || cp /arm64 /out/t", "/out"),
    "through a file": ("RUN curl -o /tmp/t.zip https://x/$(uname -m).zip && unzip /tmp/t.zip -d /out", "/out"),
    "through a file called as its URL": ("RUN curl -LO https://x/t-$(uname -m).tgz && tar xf t-*.tgz -C /out", "/out"),
    "in a later step": ("RUN uname -m > /arch\nRUN curl -o /out/t https://x/$(cat /arch)", "/out/t"),
    "into the work directory": ("RUN curl https://x/$(uname -m).tgz | tar xz", "/src"),
    "with all there is": ("RUN curl -o /t https://x/$(uname -m)", "/"),
    "below a directory": ("RUN curl https://x/$(uname -m).tgz | tar xz -C /usr/local\nRUN make", "/usr/local/bin/t"),
    "by the only command": ("RUN make ARCH=$(uname -m) install", "/usr/local/bin/app"),
    "by a relative name": ("RUN GOARCH=$(dpkg --print-architecture) go build -o bin/app .", "/src/bin/app"),
    "in exec form": ('RUN ["sh", "-c", "uname -m > /out/arch"]', "/out"),
    "through a variable of the path": ("RUN curl -o /out/$V/t https://x/$(arch)", "/out/$V/t"),
}  # fmt: skip

STAYS_IN_THE_STAGE = {
    "a compiler": (
        "RUN curl https://x/go-$(uname -m).tgz | tar -xz -C /usr/local\nRUN go build -o /out/app .", "/out/app",
    ),
    "a compiler where the product goes": (
        "RUN curl https://x/go-$(uname -m).tgz | tar -xz -C /usr/local\nRUN go build -o /usr/local/bin/app .",
        "/usr/local/bin/app",
    ),
    "a generator in the same step": (
        "RUN curl -o /bin/hugo https://x/$(uname -m) && chmod +x /bin/hugo && /bin/hugo -d /out", "/out",
    ),
    "a branch": (
        "RUN case $(uname -m) in x86_64) A=x64;; *) A=arm64;; esac; curl https://x/$A | tar xz -C /opt\nRUN npm i",
        "/src/dist",
    ),
    "a package source": (
        'RUN echo "deb [arch=$(dpkg --print-architecture)] https://x y" > /etc/apt/sources.list.d/y.list'
        " && apt-get update && apt-get install -y y\nRUN make",
        "/src/out",
    ),
    "packages": ("RUN apt-get install -y gcc-$(uname -m)\nRUN make", "/src"),
    "something said": ("RUN uname -m\nRUN make -C /out", "/out"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMES_TO_THE_TARGET)
def test_an_answer_that_comes_to_what_the_target_gets(name: str) -> None:
    steps, taken = COMES_TO_THE_TARGET[name]
    assert found(BUILD_STAGE.format(steps, taken), targets=BOTH) == [(4, "BuildMachineAsked")]


@pytest.mark.parametrize("name", STAYS_IN_THE_STAGE)
def test_an_answer_that_is_for_the_build_machine_itself(name: str) -> None:
    steps, taken = STAYS_IN_THE_STAGE[name]
    assert found("# check=error=true\n" + BUILD_STAGE.format(steps, taken), targets=BOTH) == []


def test_an_answer_is_followed_from_stage_to_stage() -> None:
    source = """\
FROM --platform=$BUILDPLATFORM a AS fetch
RUN curl -o /tool https://x/$(uname -m) && curl -o /data https://x/data
FROM --platform=$BUILDPLATFORM a AS build
COPY --from=fetch /{} /opt/t
RUN {}
FROM scratch
COPY --from=build /out /out
"""
    used, passed_on = "/opt/t --output /out/app", "cp /opt/t /out/"
    assert found(source.format("tool", used), targets=BOTH) == []
    assert found(source.format("data", passed_on), targets=BOTH) == []
    assert found(source.format("tool", passed_on), targets=BOTH) == [(2, "BuildMachineAsked")]


def test_a_mount_of_a_step_for_the_target_gets_it_too() -> None:
    source = "FROM --platform=$BUILDPLATFORM a AS b\nRUN curl -o /t https://x/$(uname -m)\nFROM a\n"
    assert found(source + "RUN --mount=from=b,source=/t,target=/t /t", targets=BOTH) == [(2, "BuildMachineAsked")]
    assert found(source + "RUN --mount=from=b,source=/d,target=/t /t\nCOPY --from=b /d /", targets=BOTH) == [
        (2, "BuildMachineAsked")  # the only command of the stage: whatever is there is its work
    ]


def test_a_dockerfile_for_windows_asks_nothing() -> None:
    steps = "FROM --platform=$BUILDPLATFORM a\nRUN powershell -Command `\n  arch; uname -m"
    assert found(f"# escape=`\n{steps}", targets=("windows/amd64", "linux/arm64")) == []
    plain = "FROM --platform=$BUILDPLATFORM a\nRUN uname -m"
    assert found(plain, targets=("linux/amd64", "windows/arm64")) == []
    assert found(plain, targets=BOTH, bases={0: BaseImage(platform="windows/amd64")}) == [
        (1, "InvalidBaseImagePlatform")
    ]


def test_a_stage_built_on_a_build_stage_is_one() -> None:
    source = "FROM --platform=$BUILDPLATFORM a AS b\nFROM b\nRUN <<E\nuname -m\nE"
    assert found(source, targets=BOTH) == [(3, "BuildMachineAsked")]


def test_a_platform_on_a_stage_makes_no_build_stage_of_it() -> None:
    source = "FROM a AS b\nFROM --platform=$BUILDPLATFORM b\nRUN uname -m"
    assert found(source, targets=BOTH) == [(2, "PlatformWithoutEffect")]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("FROM a AS b\nFROM --platform=$BUILDPLATFORM b", 2),
        ("FROM a AS b\nFROM --platform=linux/$BUILDARCH b AS c\nFROM c", 2),
        ("FROM --platform=$BUILDPLATFORM a AS b\nFROM --platform=$TARGETPLATFORM b", 2),
        ("FROM --platform=$BUILDPLATFORM a AS b\nFROM b AS c\nFROM --platform=linux/arm64 c AS arm64", 3),
        ("FROM --platform=$BUILDPLATFORM a AS b\nFROM --platform=$BUILDPLATFORM b", 0),
        ("FROM --platform=linux/arm64 a AS arm64\nFROM --platform=linux/arm64 arm64 AS arm64-2", 0),
        ("FROM --platform=linux/arm64 a AS arm64\nFROM --platform=linux/s390x arm64 AS s390x", 2),
        ("FROM a AS b\nFROM --platform=$TARGETPLATFORM b", 0),
        ("ARG P=$BUILDPLATFORM\nFROM --platform=$BUILDPLATFORM a AS b\nFROM --platform=$P b", 0),
        ("FROM a AS b\nFROM b", 0),
        ("FROM --platform=$BUILDPLATFORM scratch", 1),
        ("FROM --platform=$BUILDPLATFORM a", 0),
    ],
)
def test_a_platform_without_effect(source: str, line: int) -> None:
    skipped = f"# check=skip=RedundantTargetPlatform\n{source}"
    assert found(skipped, targets=BOTH) == ([(line + 1, "PlatformWithoutEffect")] if line else [])


def test_a_platform_that_is_the_target_s_anyway_is_not_in_the_way() -> None:
    assert found("FROM a AS b\nFROM --platform=$BUILDPLATFORM b", targets=("linux/amd64",)) == []


@pytest.mark.parametrize(
    ("instruction", "targets", "expected"),
    [
        ("ADD https://x/y-linux-amd64.tgz /", BOTH, True),
        ("ADD https://x/$V/y_x86_64 /", ("linux/arm64",), True),
        ("ADD https://x/y-amd64 /", ("linux/amd64",), False),
        ("ADD https://x/y-$TARGETARCH /", BOTH, False),
        ("ADD https://x/amd64/arm64 /", BOTH, False),
        ("ADD https://x/amd64 https://x/arm64 /", BOTH, False),
        ("RUN curl https://x/amd64 || curl https://x/aarch64", BOTH, False),
        ("ADD https://x/y /", BOTH, False),
        ("RUN curl -fsSL 'https://x/y-aarch64.deb'", BOTH, True),
        ("RUN [ $TARGETARCH = arm64 ] || curl https://x/y-amd64.deb", BOTH, False),
        ("RUN curl https://x/$(uname -m) https://x/amd64", BOTH, False),
        ("RUN curl https://x/gamd64x", BOTH, False),
        ("RUN apt-get install x:amd64", BOTH, False),
    ],
)
def test_urls_of_one_architecture(instruction: str, targets: tuple[str, ...], expected: bool) -> None:
    rules = found(f"FROM scratch\nARG V\nARG TARGETARCH\n{instruction}", targets=targets)
    assert rules == ([(4, "SinglePlatformURL")] if expected else [])


def test_stages_among_which_the_platform_chooses_may_name_theirs() -> None:
    source = "FROM scratch AS t-amd64\nADD https://x/y-x86_64 /\nFROM scratch AS t-arm64\nADD https://x/y-{} /\n"
    chosen = source + "FROM t-$TARGETARCH\nCOPY --from=t-amd64 / /\n"
    assert found(chosen.format("aarch64"), targets=BOTH) == []
    assert found(chosen.format("amd64"), targets=BOTH) == [(4, "SinglePlatformURL")]


def test_stages_of_one_platform_may_name_it() -> None:
    for platform in ("$BUILDPLATFORM", "linux/amd64"):
        source = f"FROM --platform={platform} a AS for-amd64\nADD https://x/y-amd64 /"
        assert found(source, targets=BOTH) == []


@pytest.mark.parametrize(
    ("base", "targets", "expected"),
    [
        (BaseImage(only="linux/amd64"), BOTH, True),
        (BaseImage(only="linux/amd64"), ("linux/amd64",), False),
        (BaseImage(), BOTH, False),
    ],
)
def test_a_base_pinned_to_one_platform(base: BaseImage, targets: tuple[str, ...], expected: bool) -> None:
    source = f"FROM a@sha256:{'0' * 64}"
    rules = found(source, bases={0: base}, targets=targets)
    assert rules == ([(1, "SinglePlatformDigest")] if expected else [])


def test_a_base_of_another_platform() -> None:
    assert found("FROM a", bases={0: BaseImage(platform="linux/amd64")}) == [(1, "InvalidBaseImagePlatform")]
    assert found("FROM a", bases={0: BaseImage(platform="linux/arm64")}) == []
    assert found("FROM --platform=$BUILDPLATFORM a", bases={0: BaseImage(platform="linux/amd64")}) == []


# -- the second reader -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        'FROM a\nRUN b \\\n  # why\n\n  c\nCOPY <<E <<F /x\nRUN not one\nE\n# nor this\nF\nCMD ["d"]\n',
        "# check=skip=all\n# escape=`\nFROM a\nRUN b `\n  c\nRUN d \\\nRUN e",
        "\ufeff\n# x\nARG A\n\nfrom a\r\nrun b\r\n",
        "FROM a\nONBUILD RUN <<E\nCMD no\nE\nRUN b",
    ],
)
def test_dockerfile_parse_agrees(source: str) -> None:
    assert "ReadDifferentlyElsewhere" not in [name for _, name in found(source)]


@pytest.mark.parametrize(
    ("source", "line"),
    [("FROM a\nRUN b \\\\\nRUN c", 3), ("FROM a\n\\\nRUN b", 2), ("FROM a\nRUN b \\", 2)],
)
def test_what_dockerfile_parse_reads_otherwise_is_said(source: str, line: int) -> None:
    assert (line, "ReadDifferentlyElsewhere") in found(source)


# -- forms -------------------------------------------------------------------------------------------------------------


def test_the_json_form_is_that_of_buildx() -> None:
    source = b"FROM a as b\nRUN c \\\n d\nEXPOSE x"
    found = check(parse(source, "sub/Dockerfile"), CheckedBuild(build_args={}, predefined=PREDEFINED))
    document = lint_document(found, "sub/Dockerfile", source)
    (warning,) = document["warnings"]
    assert warning["ruleName"] == "FromAsCasing"
    assert warning["location"] == {"ranges": [{"start": {"line": 1}, "end": {"line": 1}}]}
    assert base64.b64decode(document["sources"][0]["data"]) == source
    assert document["sources"][0]["filename"] == "sub/Dockerfile"
    assert document["buildError"]["message"] == "invalid containerPort: x"
    assert document["buildError"]["location"]["ranges"][0]["start"]["line"] == 4


def test_every_rule_says_why_and_has_a_name_of_its_own() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES) > 25
    for rule in RULES:
        assert rule.description.endswith(".")
        assert rule.name.isalnum()
