"""What instructions do to an image's configuration, and what they leave in its history: as BuildKit writes both."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from executor.dockerfile import parse
from executor.image import config as image
from executor.image.config import History
from executor.solver import state as steps
from executor.solver.copying import normal_path
from executor.solver.state import State
from platforms.errors import DockerfileError
from platforms.parsing import parse as parse_platform

AMD64 = parse_platform("linux/amd64")


def scratch(**config: object) -> State:
    return steps.enter(State(AMD64, replace(image.empty(AMD64), **config)))  # type: ignore[arg-type]


def after(text: str, state: State | None = None, given: dict[str, str] | None = None) -> State:
    """The state after the lines of ``text``, which follow a FROM."""
    draft = steps.StateBuilder(state or scratch())
    for step in parse(b"FROM scratch\n" + text.encode()).stages[0].instructions:
        draft.apply(step, given or {}, {}, "\\")
    return draft.state()


def said(text: str, state: State | None = None) -> list[str]:
    return [each.created_by for each in after(text, state).config.history]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("ENV A=b", "ENV A=b"),
        ("ENV A b c", "ENV A=b c"),
        ("ENV A=1 B='2 3'", "ENV A=1 B=2 3"),
        ("LABEL a=b c=d", "LABEL a=b c=d"),
        ('CMD ["a", "b c"]', 'CMD ["a" "b c"]'),
        ("CMD a b", 'CMD ["/bin/sh" "-c" "a b"]'),
        ('ENTRYPOINT ["/x"]', 'ENTRYPOINT ["/x"]'),
        ("ENTRYPOINT x  y", 'ENTRYPOINT ["/bin/sh" "-c" "x  y"]'),
        ('CMD ["say \\"hi\\"", "tab\\t", "\\u00e9", "\\u200b", "\\u0001"]',
         'CMD ["say \\"hi\\"" "tab\\t" "é" "\\u200b" "\\x01"]'),
        ('SHELL ["/bin/bash", "-c"]', "SHELL [/bin/bash -c]"),
        ("EXPOSE 80 53/udp", "EXPOSE [53/udp 80/tcp]"),
        ('VOLUME ["/a", "/b"]', "VOLUME [/a /b]"),
        ("USER app:staff", "USER app:staff"),
        ("STOPSIGNAL SIGTERM", "STOPSIGNAL SIGTERM"),
        ("MAINTAINER Me <me@example.com>", "MAINTAINER Me <me@example.com>"),
        ("HEALTHCHECK NONE",
         "HEALTHCHECK {Test:[NONE] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}"),
        ("HEALTHCHECK --interval=1m30s --retries=3 CMD curl x",
         "HEALTHCHECK {Test:[CMD-SHELL curl x] Interval:1m30s Timeout:0s StartPeriod:0s StartInterval:0s Retries:3}"),
        ('HEALTHCHECK --timeout=1500ms --start-period=2h CMD ["a", "b"]',
         "HEALTHCHECK {Test:[CMD a b] Interval:0s Timeout:1.5s StartPeriod:2h0m0s StartInterval:0s Retries:0}"),
        ("ARG A", "ARG A"),
        ("ARG A=b C", "ARG A=b C"),
    ],
)  # fmt: skip
def test_history_texts(line: str, text: str) -> None:
    entries = after(line).config.history
    assert entries == (History("", text, "buildkit.dockerfile.v0", empty_layer=True),)


def test_onbuild_leaves_no_history() -> None:
    assert said("ONBUILD RUN x") == []
    assert after("ONBUILD RUN x\nONBUILD COPY a b").config.onbuild == ("RUN x", "COPY a b")


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"), (1, "1ns"), (1_100, "1.1µs"), (2_200_000, "2.2ms"), (3_300_000_000, "3.3s"),
        (245_000_000_000, "4m5s"), (245_001_000_000, "4m5.001s"), (18_367_001_000_000, "5h6m7.001s"),
        (480_000_000_001, "8m0.000000001s"), (3_600_000_000_000, "1h0m0s"), (999_999_999, "999.999999ms"),
        (60_000_000_000, "1m0s"), (100 * 3_600_000_000_000, "100h0m0s"),
    ],
)  # fmt: skip
def test_durations_are_gos(nanoseconds: int, text: str) -> None:
    """The values of Go's own time_test.go, among others."""
    assert steps._duration(nanoseconds) == text


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", '""'),
        ("plain", '"plain"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("\a\b\f\n\r\t\v", '"\\a\\b\\f\\n\\r\\t\\v"'),
        ("\x00\x1f\x7f", '"\\x00\\x1f\\x7f"'),
        ("é☺漢", '"é☺漢"'),
        ("\u00a0\u2028\ufeff", '"\\u00a0\\u2028\\ufeff"'),
        ("\u0085", '"\\u0085"'),
        ("😀", '"😀"'),
        ("\U000e0001", '"\\U000e0001"'),
        ("\udcff", '"\\xff"'),
        ("it's", '"it\'s"'),
    ],
)
def test_quoting_is_gos(text: str, quoted: str) -> None:
    """strconv.Quote: printable text stays, the rest is escaped; a byte that is no UTF-8 is ``\\xNN``."""
    assert steps.go_quote(text) == quoted


def test_an_argument_is_seen_until_env_takes_its_name() -> None:
    state = after("ARG A=1\nENV A=2\nARG A=3")
    assert dict(state.env)["A"] == "3"
    assert ("A", "2") in state.config.env
    assert all(key != "A" or value == "2" for key, value in state.config.env)


def test_a_given_argument_beats_its_default() -> None:
    assert dict(after("ARG A=1", given={"A": "2"}).env)["A"] == "2"
    assert "A" not in dict(after("ARG A").env)


def test_silent_arguments_are_no_environment() -> None:
    assert "BUILDKIT_SBOM_SCAN_STAGE" not in dict(after("ARG BUILDKIT_SBOM_SCAN_STAGE=true").env)


def test_run_says_its_arguments() -> None:
    state = after("ARG B=2\nARG A=1\nARG B=3\nARG EMPTY")
    assert steps.run_text(state, ("/bin/sh", "-c", "x")) == "RUN |3 B=3 A=1 EMPTY= /bin/sh -c x # buildkit"
    assert steps.run_text(scratch(), ("x",)) == "RUN x # buildkit"


def test_env_keeps_its_place() -> None:
    names = [key for key, _ in after("ENV A=1 B=2\nENV A=3").config.env]
    assert names == ["PATH", "A", "B"]


def test_entrypoint_takes_the_bases_command_away_but_not_the_stages_own() -> None:
    base = scratch(cmd=("from", "base"))
    assert after('ENTRYPOINT ["x"]', base).config.cmd is None
    assert after('CMD ["own"]\nENTRYPOINT ["x"]', base).config.cmd == ("own",)
    assert after("USER x", base).config.cmd == ("from", "base")


def test_shell_forms_use_the_stages_shell() -> None:
    found = after('SHELL ["/bin/bash", "-o", "pipefail", "-c"]\nCMD a | b\nENTRYPOINT c').config
    assert found.cmd == ("/bin/bash", "-o", "pipefail", "-c", "a | b")
    assert found.entrypoint == ("/bin/bash", "-o", "pipefail", "-c", "c")


def test_labels_ports_and_volumes_are_merged() -> None:
    base = scratch(labels=(("a", "1"), ("b", "1")), exposed_ports=("80/tcp",), volumes=("/v",))
    found = after("LABEL b=2 c=2\nEXPOSE 80 443\nVOLUME /v /w", base).config
    assert found.labels == (("a", "1"), ("b", "2"), ("c", "2"))
    assert found.exposed_ports == ("443/tcp", "80/tcp")
    assert found.volumes == ("/v", "/w")


def test_a_base_without_path_gets_one() -> None:
    state = steps.enter(State(AMD64, replace(image.empty(AMD64), env=())))
    assert dict(state.config.env)["PATH"] == image.DEFAULT_PATH
    kept = steps.enter(State(AMD64, replace(image.empty(AMD64), env=(("PATH", "/x"),))))
    assert kept.config.env == (("PATH", "/x"),)


@pytest.mark.parametrize(
    ("directory", "path", "meant"),
    [
        ("/", "a", "/a"), ("/a", "b", "/a/b"), ("/a", "/b", "/b"), ("/a", "../b", "/b"), ("/a", "../../../b", "/b"),
        ("", "a", "/a"), ("/a", "b/", "/a/b"), ("/a", ".", "/a"), ("/", "/", "/"), ("/", "//a//b", "/a/b"),
        ("a", "b", "/a/b"),
    ],
)  # fmt: skip
def test_paths_are_joined_as_go_joins_them(directory: str, path: str, meant: str) -> None:
    assert normal_path(directory, path) == meant


def test_an_empty_volume_is_refused() -> None:
    with pytest.raises(DockerfileError, match="VOLUME"):
        after('VOLUME [""]')


def test_nothing_changes_the_state_it_was_given() -> None:
    state = scratch()
    before = repr(state)
    after("ENV A=1\nLABEL a=b\nCMD x\nARG B=2\nEXPOSE 1\nVOLUME /v\nUSER u", state)
    assert repr(state) == before
