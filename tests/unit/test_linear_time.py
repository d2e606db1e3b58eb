"""A Dockerfile of ten thousand lines costs ten times one of a thousand, whatever the lines are; so do bases' variables.

Measured by the processor time of this process, four sizes up: what grows with the square takes sixteen times as long.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from executor.dockerfile import checks, outline, parse
from executor.dockerfile.scope import global_scope
from executor.image import config as image
from executor.solver import builtin_args, graph
from executor.solver import state as steps
from executor.solver.state import State
from platforms.parsing import parse as parse_platform

AMD64 = parse_platform("linux/amd64")
PREDEFINED = builtin_args.platform_arguments(AMD64, AMD64, "")
FEW = 1000
TIMES = 4
MOST = 9.0
"""How much longer the larger one may take: linear is 4, quadratic 16."""

LINES: dict[str, Callable[[int], str]] = {
    "ENV": lambda i: f"ENV K{i}=v{i}",
    "ENV of another": lambda i: f"ENV K{i}=${{K{i - 1}}}" if i % 50 else f"ENV K{i}=x",
    "ENV of nothing": lambda i: f"ENV K{i}=$NOTHING{i}",
    "LABEL": lambda i: f"LABEL K{i}=v{i}",
    "EXPOSE": lambda i: f"EXPOSE {i + 1}",
    "VOLUME": lambda i: f"VOLUME /v{i}",
    "ARG": lambda i: f"ARG K{i}=v{i}",
    "ONBUILD": lambda i: f"ONBUILD RUN {i}",
    "CMD": lambda i: f"CMD {i}",
    "stages on each other": lambda i: f"FROM {f's{i - 1}' if i else 'scratch'} AS s{i}",
    "stages apart": lambda i: f"FROM scratch AS s{i}\nCOPY --from={f's{i - 1}' if i else 'x'} / /",
    "ARG before FROM": lambda i: f"ARG K{i}=v{i}",
}


def written(kind: str, lines: int) -> bytes:
    text = "\n".join(map(LINES[kind], range(lines)))
    if kind.startswith("stages"):
        return text.encode()
    return f"{text}\nFROM scratch\n".encode() if "before" in kind else f"FROM scratch\n{text}\n".encode()


def read(data: bytes) -> None:
    """What a build does with a Dockerfile before any step: read it, check it, know what is needed, make a config."""
    found = parse(data)
    seen = global_scope(found, {}, PREDEFINED)
    graph.plan(found, "", seen)
    graph.plan_all(found, seen)
    build = checks.CheckedBuild(build_args={}, predefined=PREDEFINED, targets=("linux/amd64",))
    checks.check(found, build)
    outline.outline(found, None, {}, PREDEFINED)
    outline.targets(found)
    state = steps.enter(State(AMD64, image.empty(AMD64)))
    for stage in found.stages:
        draft = steps.StateBuilder(state)
        for instruction in stage.instructions:
            if instruction.keyword.upper() != "COPY":
                draft.apply(instruction, {}, seen, found.escape)
        draft.state()


def spent(data: bytes) -> float:
    """Seconds of this process's time, the better of two tries."""
    tries = []
    for _ in range(2):
        began = time.process_time()
        read(data)
        tries.append(time.process_time() - began)
    return min(tries)


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """What the collector takes depends on all that the tests before this one have left."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("kind", LINES)
def test_time_grows_with_the_lines(kind: str) -> None:
    few, many = spent(written(kind, FEW)), spent(written(kind, FEW * TIMES))
    assert many < MOST * few + 0.05, f"{FEW} lines {few:.2f} s, {FEW * TIMES} lines {many:.2f} s"


def test_a_base_with_many_variables_costs_no_more_than_reading_them() -> None:
    """60,000 of them cost a minute and a half, and their square for every four times as many."""

    def entered(count: int) -> float:
        pairs = tuple((f"K{number}", "v") for number in range(count))
        state = State(AMD64, replace(image.empty(AMD64), env=pairs))
        began = time.process_time()
        draft = steps.StateBuilder(steps.enter(state))
        for instruction in parse(b"FROM x\nENV A=b K7=c\nLABEL a=b\n").stages[0].instructions:
            draft.apply(instruction, {}, {}, "\\")
        assert dict(draft.state().env)["K7"] == "c"
        return time.process_time() - began

    assert entered(60_000) < MOST * entered(15_000) + 0.1
