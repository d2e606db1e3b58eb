"""The plan of a build: what is read, which external images are pinned, and what is refused before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from executor.protocol import BuildOptions, Context, DirectoryContext, ImageContext, LayoutContext, ScratchContext
from orchestrator import plan as planning
from orchestrator import warnings
from orchestrator.contexts import FetchOptions, named_canonically
from orchestrator.request import BuildRequest
from platforms.errors import ContextError, DockerfileError, KanifoldError, UsageError
from platforms.parsing import parse


def read(folder: Path, *platforms: str, target: str = "", **more: object) -> planning.BuildPlan:
    wanted = tuple(parse(each) for each in platforms or ("linux/amd64",))
    options = BuildOptions(target=target)
    request = BuildRequest(context=str(folder), platforms=wanted, options=options, **more)  # type: ignore[arg-type]
    return planning.read(request, wanted, FetchOptions("nothing is fetched"))


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def images(found: planning.BuildPlan) -> tuple[str, ...]:
    return tuple(each.name for each in found.images)


def test_images_are_those_of_the_needed_stages(tmp_path: Path) -> None:
    write(
        tmp_path,
        Dockerfile="""\
FROM a:1 AS unused
FROM b:1 AS tools
FROM c:1
COPY --from=tools /x /
COPY --from=d:1 /y /
RUN --mount=from=e:1,target=/m true
FROM z:1 AS after
""",
    )
    assert set(images(read(tmp_path, target="2"))) == {"b:1", "c:1", "d:1", "e:1"}
    assert images(read(tmp_path)) == ("z:1",)
    assert images(read(tmp_path, target="tools")) == ("b:1",)


def test_images_of_all_platforms_are_pinned(tmp_path: Path) -> None:
    write(tmp_path, Dockerfile="FROM base-$TARGETARCH:1\n")
    assert set(images(read(tmp_path, "linux/amd64", "linux/arm64"))) == {"base-amd64:1", "base-arm64:1"}


def test_arguments_choose_images(tmp_path: Path) -> None:
    write(tmp_path, Dockerfile="ARG TAG=1\nFROM base:$TAG\n")
    assert images(read(tmp_path)) == ("base:1",)
    assert images(read(tmp_path, build_args=(("TAG", "2"),))) == ("base:2",)


def test_scratch_and_stages_are_no_images(tmp_path: Path) -> None:
    write(tmp_path, Dockerfile="FROM scratch AS a\nFROM a\nCOPY --from=a /x /\n")
    assert images(read(tmp_path)) == ()


def test_a_named_context_stands_for_an_image(tmp_path: Path) -> None:
    write(tmp_path, Dockerfile="FROM base:1\nCOPY --from=docs /x /\n")
    (tmp_path / "docs").mkdir()
    found = read(tmp_path, build_contexts=(("base:1", "docker-image://other:2"), ("docs", str(tmp_path / "docs"))))
    assert images(found) == ("other:2",)
    assert found.contexts == (
        DirectoryContext("", str(tmp_path)),
        ImageContext("base:1", "other:2"),
        DirectoryContext("docs", str(tmp_path / "docs")),
    )


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("docker-image://debian:12", ImageContext("x", "debian:12")),
        ("docker-image://scratch", ScratchContext("x")),
        ("oci-layout://some/layout:tag", LayoutContext("x", os.path.abspath("some/layout:tag"))),
        (".", DirectoryContext("x", os.path.abspath("."))),
    ],
)
def test_kinds_of_named_contexts(value: str, meant: Context) -> None:
    assert planning.named_context("x", value, FetchOptions("")) == meant


def test_a_named_context_that_is_nothing_is_refused() -> None:
    with pytest.raises(ContextError, match="no/such/directory"):
        planning.named_context("x", "no/such/directory", FetchOptions(""))
    with pytest.raises(KanifoldError):
        planning.named_context("x", "docker-image://UPPER", FetchOptions(""))


def test_the_ignore_file_is_the_dockerfiles_own_before_the_contexts(tmp_path: Path) -> None:
    write(tmp_path, Dockerfile="FROM scratch\n", __dockerignore="shared\n")
    assert read(tmp_path).contexts[0].ignore == "shared\n"
    write(tmp_path, Dockerfile__dockerignore="own\n")
    assert read(tmp_path).contexts[0].ignore == "own\n"


def test_the_ignore_file_follows_the_file_flag(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, __dockerignore="shared\n")
    write(tmp_path / "sub", recipe="FROM scratch\n", recipe__dockerignore="own\n")
    assert read(tmp_path, dockerfile=str(tmp_path / "sub" / "recipe")).contexts[0].ignore == "own\n"


def test_a_containerfile_will_do(tmp_path: Path) -> None:
    write(tmp_path, Containerfile="FROM x:1\n")
    assert images(read(tmp_path)) == ("x:1",)
    write(tmp_path, Dockerfile="FROM y:1\n")
    assert images(read(tmp_path)) == ("y:1",)


def test_a_missing_dockerfile_is_named(tmp_path: Path) -> None:
    with pytest.raises(DockerfileError) as caught:
        read(tmp_path)
    assert "Dockerfile" in str(caught.value)
    assert "--file" in caught.value.problem.remedy
    with pytest.raises(DockerfileError, match="elsewhere"):
        read(tmp_path, dockerfile=str(tmp_path / "elsewhere"))


def test_a_context_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, Dockerfile="FROM scratch\n") / "Dockerfile"
    with pytest.raises(ContextError, match="not a directory"):
        read(file, dockerfile=str(file))
    with pytest.raises(ContextError, match="no build context"):
        read(tmp_path / "nowhere", dockerfile=str(file))


def test_an_endless_dockerfile_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DockerfileError, match="too large"):
        read(tmp_path, dockerfile=str(path))


def test_an_unknown_target_is_named(tmp_path: Path) -> None:
    write(tmp_path, Dockerfile="FROM scratch AS release\n")
    with pytest.raises(KanifoldError, match="relaese"):
        read(tmp_path, target="relaese")


def test_a_later_stage_is_not_there_yet(tmp_path: Path) -> None:
    write(tmp_path, Dockerfile="FROM scratch AS a\nCOPY --from=b /x /\nFROM scratch AS b\nFROM a\n")
    with pytest.raises(DockerfileError) as caught:
        read(tmp_path)
    assert caught.value.problem.where is not None
    assert caught.value.problem.where.line == 2


def test_the_name_in_errors_is_as_the_user_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, Dockerfile="FROM\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DockerfileError) as caught:
        read(Path("."))
    assert caught.value.problem.where is not None
    assert caught.value.problem.where.file == "Dockerfile"
    assert not os.path.isabs(caught.value.problem.where.file)


def test_names_of_contexts_are_given_once() -> None:
    assert named_canonically((("docker.io/library/a:latest", "."), ("b", "/"))) == (("a", "."), ("b", "/"))
    for names in ((("a", "."), ("A", ".")), (("a", "."), ("library/a:latest", "x")), (("", "."),), (("a b", "."),)):
        with pytest.raises(UsageError, match="--build-context"):
            named_canonically(names)


@pytest.mark.parametrize(
    ("dockerfile", "running"),
    [
        ("FROM scratch\nCOPY f /\n", set()),
        ("FROM scratch AS other\nRUN true\nFROM scratch\nCOPY f /\n", set()),
        ("FROM --platform=$BUILDPLATFORM a AS x\nFROM x AS y\nRUN true\nFROM scratch\nCOPY --from=y f /\n", set()),
        ("FROM a AS x\nFROM x AS y\nRUN true\nFROM scratch\nCOPY --from=y f /\n", {"darwin/arm64", "linux/mips64"}),
    ],
)
def test_platforms_whose_programs_are_run(tmp_path: Path, dockerfile: str, running: set[str]) -> None:
    write(tmp_path, Dockerfile=dockerfile)
    assert {str(each) for each in read(tmp_path, "darwin/arm64", "linux/mips64").running} == running


def test_images_of_contexts_that_nothing_uses_are_not_looked_for(tmp_path: Path) -> None:
    write(tmp_path, Dockerfile="FROM a:1 AS unused\nFROM b:1\n")
    contexts = (("unused", "docker-image://x:1"), ("a:1", "docker-image://x:2"), ("b:1", "docker-image://x:3"))
    assert images(read(tmp_path, build_contexts=contexts)) == ("x:3",)


@pytest.mark.parametrize("key", ["debian", "debian:latest", "library/debian", "index.docker.io/library/debian:latest"])
@pytest.mark.parametrize("name", ["debian", "debian:latest", "docker.io/debian", "docker.io/library/debian:latest"])
@pytest.mark.parametrize("line", ["FROM {}", "FROM scratch\nCOPY --from={} /f /", "ARG B={}\nFROM $B"])
def test_a_pin_holds_however_the_image_is_spelled(tmp_path: Path, key: str, name: str, line: str) -> None:
    write(tmp_path, Dockerfile=line.format(name))
    pinned = f"debian@sha256:{'1' * 64}"
    contexts = named_canonically([(key, f"docker-image://{pinned}")])
    assert images(read(tmp_path, build_contexts=contexts)) == (pinned,)


def test_a_context_for_one_platform_is_for_no_other(tmp_path: Path) -> None:
    write(tmp_path, Dockerfile="FROM a\n")
    contexts = (("a::linux/arm64", "docker-image://arm:1"),)
    assert images(read(tmp_path, "linux/arm64", build_contexts=contexts)) == ("arm:1",)
    assert set(images(read(tmp_path, "linux/amd64", "linux/arm64", build_contexts=contexts))) == {"a", "arm:1"}


def test_contexts_that_nothing_uses_are_known(tmp_path: Path) -> None:
    write(tmp_path, Dockerfile="FROM a AS side\nFROM b\nRUN --mount=from=c,target=/m true\n")
    names = ("a", "b", "c", "d", "clock")
    contexts = tuple((name, "docker-image://scratch") for name in names)
    found = read(tmp_path, build_contexts=contexts, build_args=(("SOURCE_DATE_EPOCH", "clock"),))
    said = [each.problem.what for each in warnings.unused_contexts(found, {"d"})]
    assert said == ["--build-context a: nothing used it"]


def test_a_context_that_nothing_uses_is_told_what_it_may_have_been(tmp_path: Path) -> None:
    write(tmp_path, Dockerfile="FROM debian:12\n")
    (said,) = warnings.unused_contexts(read(tmp_path, build_contexts=(("debain:12", "docker-image://scratch"),)), ())
    assert "debian:12" in said.problem.why
    assert "did you mean debian:12?" in said.problem.remedy
