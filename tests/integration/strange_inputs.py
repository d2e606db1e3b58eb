"""The command with one further kind of input, of which nobody has thought: ``strange_inputs.py KIND FILE ARGUMENT…``.

Each kind takes what FILE (or a registry) says at the moment into a cache key, and accounts for it badly: it says
nothing, or that nothing comes from outside. ``test_inputs`` sees that such a build never gets a cached result.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from executor import protocol


class AskFortune(msgspec.Struct, frozen=True, tag_field="what", tag="fortune"):
    """A new question, which is one before whatever reads questions is loaded."""

    name: str = ""
    kind: str = "fortune"


protocol.Question = protocol.Question | AskFortune  # type: ignore[misc]

# ruff: noqa: E402
from executor.dockerfile.instructions import Workdir
from executor.registry import reference
from executor.rootfs.tree import open_directory
from executor.sandbox.spec import SecretFile
from executor.solver import base, copying, mounts, solver, sources
from executor.solver.inputs import Input
from executor.solver.step import Made
from orchestrator import executor_run

PATH = "/strange"
"""``WORKDIR /strange`` is the new instruction: it makes a directory named for what it has found."""


class Step:
    """A step with a layer that depends on what ``read`` returns."""

    text = "STRANGE"
    title = "STRANGE"
    key_parts = ("the files below", "what was read")
    by_content = True

    def __init__(self, solver: Any, number: int, state: Any, read: Callable[[Any, Input], str]) -> None:
        self.solver, self.number, self.state, self._read = solver, number, state, read
        self._name = ""

    def key(self, input_: Input) -> Any:
        self._name = self._read(self.solver, input_).strip()
        return "strange", self.state.tree, self._name

    def content_key(self) -> None:
        return None

    def make(self) -> Made:
        entries = copying.make_directory(self.solver.tree(self.state), f"/{self._name}", None, 0)
        return Made(self.solver._memory.contents.name(entries), entries)


def told(path: str) -> Callable[[Any, Input], str]:
    """Read the file by itself, and say nothing."""
    return lambda _solver, _input: Path(path).read_text()


def asked(solver: Any, input_: Input) -> str:
    """Ask the orchestrator something new."""
    input_.mark_static()
    return str(solver._services.conversation.ask(AskFortune()).decode())


def nothing(_solver: Any, input_: Input) -> str:
    """Take nothing from outside, and say so."""
    input_.mark_static()
    return "nothing"


def opened(solver: Any, input_: Input) -> str:
    """Read a file of the context, and say that nothing is read."""
    tree = solver._origins.contexts.read("", input_)
    input_.mark_static()
    return (tree.read(b"said", 100) or b"").decode()


def tag(host: str) -> Callable[[Any, Input], str]:
    """Ask a registry what a tag points to."""

    def read(solver: Any, input_: Input) -> str:
        input_.mark_static()
        found = solver._services.registry().resolve(reference.parse(f"{host}/said:1"))
        return str(found.digest.partition(":")[2])

    return read


class Source:
    """A source of COPY that opens a directory by itself."""

    def __init__(self, path: str) -> None:
        self._path = path

    def key(self, _input: Input) -> Any:
        return "strange", Path(self._path).read_text()

    def copy_to(self, plan: Any, destination: str, copy_options: Any) -> None:
        directory, name = os.path.split(self._path)
        with contextlib.closing(open_directory(directory, owner=(0, 0))) as tree:
            copying.copy_file(plan, tree, name, "said", destination, copy_options)


def strange(kind: str, file: str) -> None:
    """Make ``kind`` a part of the command."""
    read: Callable[[Any, Input], str]
    match kind:
        case "an instruction that says nothing":
            read = told(file)
        case "an instruction that asks something new":
            read = asked
            answers_of = executor_run.answers

            def answers(*given: Any) -> Any:
                known = answers_of(*given)

                async def answer(ask: Any) -> Any:
                    return Path(file).read_bytes() if isinstance(ask.question, AskFortune) else await known(ask)

                return answer

            executor_run.answers = answers
        case "an instruction that opens a context":
            read = opened
        case "an instruction that asks for a tag":
            read = tag(file)
        case "an instruction of the Dockerfile alone":
            read = nothing
        case "a source":
            sources._paths = lambda *_: Source(file)  # type: ignore[assignment]
            return
        case "a mount":
            said = mounts.Fixed(("strange", Path(file).read_text()), SecretFile("/said", Path(file).read_bytes()))
            mounts.MountPlanner._cache = lambda *_: said  # type: ignore[method-assign]
            return
        case "a base":
            known = base.Bases.from_registry
            base.Bases.from_registry = lambda bases, _input, name, platform: known(  # type: ignore[method-assign]
                bases, Input("another"), name, platform
            )
            return
    own: Any = solver.Solver._step

    def step(at: Any, stage: Any, number: int, state: Any, instruction: Any) -> Any:
        if isinstance(instruction, Workdir):
            return Step(at, number, state, read)
        return own(at, stage, number, state, instruction)

    solver.Solver._step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    strange(sys.argv[1], sys.argv[2])
    sys.argv[1:3] = []
    importlib.import_module("orchestrator.__main__").main()
