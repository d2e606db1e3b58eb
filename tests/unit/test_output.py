"""A step's output as lines: masked whole, however it comes in pieces, and cut where it becomes too much."""

from __future__ import annotations

import itertools
import os

import pytest

from executor.solver import output
from executor.solver.output import Clip, LogLimits, Stream, Tail, captured

SECRET = "hunter2-correct-horse"
FREE = LogLimits(-1, -1)


def run(*pieces: bytes, secrets: tuple[str, ...] = ()) -> str:
    stream = Stream(secrets)
    return "".join(stream.feed(piece, 0.0) for piece in pieces) + stream.end()


@pytest.mark.parametrize("text", [f"a {SECRET} b\n{SECRET}", f"ü{SECRET}\n\n{SECRET}{SECRET}\n", f"\r{SECRET}\r\nx"])
def test_a_secret_is_masked_wherever_the_pieces_end(text: str) -> None:
    data = text.encode()
    for first, second in itertools.combinations_with_replacement(range(len(data) + 1), 2):
        said = run(data[:first], data[first:second], data[second:], secrets=(SECRET,))
        assert SECRET not in said
        assert said.count("***") >= text.count(SECRET)


@pytest.mark.parametrize("before", range(-len(SECRET) - 2, 3))
def test_a_secret_is_masked_where_a_line_without_end_is_cut(before: int) -> None:
    long = b"x" * (output._LINE_LIMIT + before)
    for cut in range(len(SECRET) + 1):
        said = run(long + SECRET[:cut].encode(), SECRET[cut:].encode() + b"y" * 10, b"\nz\n", secrets=(SECRET,))
        assert SECRET not in said.replace("\n", "")
        assert "***" in said


def test_characters_are_whole_wherever_the_pieces_end() -> None:
    data = "häßlich ☂ 😀\n".encode() + b"\xff\n"
    for cut in range(len(data)):
        assert run(data[:cut], data[cut:]) == data.decode("utf-8", "replace")


def test_empty_lines_are_lines() -> None:
    said: list[str] = []
    with captured((), FREE, Tail(), lambda lines, _: said.extend(lines.split("\n"))) as (out, _):
        os.write(out, b"\n\na\n\nend")
    assert said == ["", "", "a", "", "end"]


def test_a_progress_bar_is_not_told_each_time() -> None:
    said = run(*(f"\r{number}%".encode() for number in range(1000)), b"\r100%\n")
    assert said.count("\n") < 5
    assert said.endswith("100%\n")


def test_the_size_is_limited_and_it_is_said_once() -> None:
    clip = Clip(LogLimits(100, -1), 0.0)
    lines = "\n".join(["123456789"] * 20)
    first = clip.cut(lines, 0.0)
    assert first == "\n".join([*["123456789"] * 10, "[output clipped, log limit 100B reached]"])
    assert clip.cut(lines, 1.0) is None


def test_the_speed_is_limited_on_average() -> None:
    clip = Clip(LogLimits(-1, 2048), 0.0)
    lines = "\n".join(["1234567"] * 512)  # 4 KiB
    first = clip.cut(lines, 0.5)
    assert first is not None
    assert first.endswith("\n[output clipped, log limit 2KiB/s reached]")
    assert first.count("1234567") == 256
    assert clip.cut(lines, 1.0) is None
    assert clip.cut("later", 100.0) == "later"


def test_the_last_lines_are_kept_whatever_was_told() -> None:
    tail, said = Tail(), list[str]()
    with captured((SECRET,), LogLimits(10, -1), tail, lambda lines, _: said.append(lines)) as (out, err):
        os.write(out, "".join(f"line {number}\n" for number in range(100)).encode())
        os.write(out, f"{SECRET}\nlast\n".encode())
        os.close(os.dup(err))
    assert tail.lines[-3:] == ("line 99", "***", "last")
    assert len(tail.lines) == output.TAIL
    assert "".join(said).count("clipped") == 1


@pytest.mark.parametrize(
    ("environ", "limits"),
    [
        ({}, LogLimits(2 << 20, 200 << 10)),
        ({"BUILDKIT_STEP_LOG_MAX_SIZE": "-1", "BUILDKIT_STEP_LOG_MAX_SPEED": "1000"}, LogLimits(-1, 1000)),
        ({"BUILDKIT_STEP_LOG_MAX_SIZE": "much"}, LogLimits()),
    ],
)
def test_the_environment_sets_the_limits(environ: dict[str, str], limits: LogLimits) -> None:
    assert LogLimits.of(environ) == limits


@pytest.mark.parametrize(
    ("size", "text"), [(2 << 20, "2MiB"), (200 << 10, "200KiB"), (1000, "1000B"), (1536, "1.5KiB")]
)
def test_limits_are_written_as_buildkit_writes_them(size: int, text: str) -> None:
    assert output._amount(size) == text
