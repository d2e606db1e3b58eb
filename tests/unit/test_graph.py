"""Which stages a target needs, what each is built on, and what names mean where."""

from __future__ import annotations

import pytest

from executor.dockerfile import parse
from executor.solver.graph import FromContext, FromImage, FromStage, Graph, plan, plan_all, platform_of
from executor.solver.named import Named
from platforms.errors import DockerfileError, KanifoldError
from platforms.parsing import parse as parse_platform

SCOPE = {"BUILDPLATFORM": "linux/amd64", "TARGETPLATFORM": "linux/arm64", "BASE": "base:1"}


def graph(text: str, target: str = "", contexts: tuple[str, ...] = ()) -> Graph:
    return plan(parse(text.encode()), target, SCOPE, Named(frozenset(contexts), parse_platform("linux/arm64")))


def needed(text: str, target: str = "", contexts: tuple[str, ...] = ()) -> tuple[tuple[int, ...], tuple[str, ...]]:
    found = graph(text, target, contexts)
    return found.stages, tuple(each.name for each in found.images)


@pytest.mark.parametrize(
    ("text", "stages", "images"),
    [
        ("FROM a", (0,), ("a",)),
        ("FROM scratch", (0,), ()),
        ("FROM $BASE", (0,), ("base:1",)),
        ("FROM a AS x\nFROM b", (1,), ("b",)),
        ("FROM a AS x\nFROM x", (0, 1), ("a",)),
        ("FROM a AS x\nFROM b\nCOPY --from=x /f /", (0, 1), ("b", "a")),
        ("FROM a AS x\nFROM b\nCOPY --from=0 /f /", (0, 1), ("b", "a")),
        ("FROM a AS x\nFROM b\nCOPY --from=X /f /", (0, 1), ("b", "a")),
        ("FROM a AS x\nFROM b\nRUN --mount=from=x,target=/m true", (0, 1), ("b", "a")),
        ("FROM a AS x\nFROM b\nRUN --mount=type=cache,from=x,target=/m true", (0, 1), ("b", "a")),
        ("FROM b\nRUN --mount=from=img:2,target=/m true", (0,), ("b", "img:2")),
        ("FROM b\nCOPY --from=img:2 /f /", (0,), ("b", "img:2")),
        ("FROM a AS one\nFROM one AS two\nFROM b AS loner\nFROM two", (0, 1, 3), ("a",)),
        ("FROM a\nCOPY x /", (0,), ("a",)),
    ],
)
def test_only_what_the_last_stage_needs(text: str, stages: tuple[int, ...], images: tuple[str, ...]) -> None:
    found = needed(text)
    assert found[0] == stages
    assert set(found[1]) == set(images)


@pytest.mark.parametrize("target", ["mid", "MID", "1"])
def test_a_target_by_name_or_number(target: str) -> None:
    assert needed("FROM a AS low\nFROM b AS mid\nFROM c AS high", target) == ((1,), ("b",))


@pytest.mark.parametrize("target", ["none", "3", "-1", "99999999999999999999"])
def test_no_such_target(target: str) -> None:
    with pytest.raises(KanifoldError):
        graph("FROM a AS low\nFROM b AS mid\nFROM c AS high", target)


def test_the_chain_is_what_the_image_is_made_of() -> None:
    found = plan(parse(b"FROM a AS one\nFROM one AS two\nFROM b AS side\nFROM two\nCOPY --from=side /x /"), "", SCOPE)
    assert found.chain == (3, 1, 0)
    assert found.bases[3] == FromStage(1)


def test_a_stage_shadows_an_image_of_its_name() -> None:
    assert needed("FROM debian AS debian\nFROM debian") == ((0, 1), ("debian",))


def test_a_stage_does_not_see_itself_or_what_comes_after() -> None:
    assert needed("FROM x AS y\nFROM z AS x", "y") == ((0,), ("x",))
    for text in ("FROM a AS x\nCOPY --from=x /f /", "FROM a\nCOPY --from=late /f /\nFROM b AS late\nFROM 0"):
        with pytest.raises(DockerfileError) as caught:
            graph(text, "0")
        assert caught.value.problem.where is not None
        assert caught.value.problem.where.line == 2


@pytest.mark.parametrize("number", ["1", "2", "7"])
def test_a_number_of_no_earlier_stage_is_no_image(number: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        graph(f"FROM a\nFROM b\nCOPY --from={number} /f /")
    assert caught.value.problem.where is not None
    assert caught.value.problem.where.line == 3


def test_a_named_context_comes_before_everything() -> None:
    assert needed("FROM debian:12", contexts=("debian:12",)) == ((0,), ())
    assert needed("FROM a AS x\nFROM b\nCOPY --from=x /f /", contexts=("x",)) == ((0, 1), ("b",))
    found = graph("FROM a AS x\nFROM x", contexts=("x",))
    assert found.bases[0] == FromContext("x")


def test_contexts_in_place_of_a_stage_need_nothing_of_it() -> None:
    text = "FROM a AS deep\nFROM b AS x\nCOPY --from=deep /f /\nFROM x"
    assert needed(text) == ((0, 1, 2), ("b", "a"))
    assert needed(text, contexts=("x",)) == ((1, 2), ())


def test_the_names_scratch_and_context_are_no_stages_for_a_context() -> None:
    for name in ("scratch", "context"):
        assert graph(f"FROM a AS {name}", contexts=(name,)).bases[0] == FromImage("a")
    assert graph("FROM scratch", contexts=("scratch",)).contexts == ()
    assert graph("FROM a\nCOPY --from=scratch /f /", contexts=("scratch",)).contexts == ()
    assert graph("FROM a\nCOPY --from=context /f /", contexts=("context",)).contexts == ("context",)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("FROM a", "a::linux/arm64"),
        ("FROM --platform=$TARGETPLATFORM docker.io/library/a:latest", "a::linux/arm64"),
        ("FROM --platform=linux/s390x a", "a"),
        ("FROM --platform=linux/s390x x AS a", "a"),
        ("FROM x AS a", "a::linux/arm64"),
        ("FROM scratch\nCOPY --from=a / /", "a::linux/arm64"),
        ("FROM scratch\nRUN --mount=from=a,target=/m true", "a::linux/arm64"),
    ],
)
def test_a_context_for_one_platform_comes_before_the_one_for_all(text: str, taken: str) -> None:
    assert graph(text, contexts=("a", "a::linux/arm64", "a::linux/riscv64")).contexts == (taken,)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("FROM a", "linux/s390x"),
        ("FROM --platform=$BUILDPLATFORM a", "linux/amd64"),
        ("FROM --platform=arm64 a", "linux/arm64"),
        ("FROM --platform=${TARGETPLATFORM} a", "linux/arm64"),
        ("FROM --platform=$BUILDPLATFORM scratch", "linux/s390x"),
    ],
)
def test_platforms_of_stages(text: str, meant: str) -> None:
    dockerfile = parse(text.encode())
    found = platform_of(dockerfile, dockerfile.stages[0], SCOPE, parse_platform("linux/s390x"))
    assert str(found) == meant


def test_a_misspelt_variable_in_a_platform_is_named() -> None:
    dockerfile = parse(b"FROM --platform=linux/$TARGTARCH a")
    with pytest.raises(DockerfileError, match=r"did you mean TARGETARCH\?"):
        platform_of(dockerfile, dockerfile.stages[0], {"TARGETARCH": "arm64"}, parse_platform("linux/amd64"))


def test_a_platform_that_is_none_has_a_place() -> None:
    dockerfile = parse(b"FROM --platform=what/is/this/now a")
    with pytest.raises(DockerfileError) as caught:
        platform_of(dockerfile, dockerfile.stages[0], SCOPE, parse_platform("linux/amd64"))
    assert caught.value.problem.where is not None


def test_a_graph_of_every_stage_says_what_the_first_of_them_would() -> None:
    text = b"FROM scratch AS a\nCOPY --from=b / /\nFROM scratch AS b\nCOPY --from=c / /\nFROM scratch AS c\n"
    with pytest.raises(DockerfileError, match='cannot copy from stage "b"'):
        plan_all(parse(text), {})
    assert plan_all(parse(b"FROM scratch AS a\nFROM scratch\nFROM a\n"), {}).stages == (0, 1, 2)
