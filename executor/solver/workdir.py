"""The step WORKDIR: creates the directory if it is missing, owned by the stage's user."""

from __future__ import annotations

from typing import ClassVar

import msgspec
from msgspec.structs import replace

from executor.dockerfile.instructions import Workdir
from executor.solver import copying, users
from executor.solver import state as states
from executor.solver.content import Contents
from executor.solver.inputs import Input
from executor.solver.services import FileSystems
from executor.solver.state import State
from executor.solver.step import Made
from executor.solver.treename import Observed


class WorkdirStep(msgspec.Struct, frozen=True):
    """A WORKDIR. The working directory of ``state`` is set."""

    contents: Contents
    filesystems: FileSystems
    made_ns: int
    """The modification time of directories that are created, nanoseconds."""
    number: int
    state: State
    by_content: ClassVar[bool] = True

    @property
    def text(self) -> str:
        return f"WORKDIR {self.state.workdir}"

    @property
    def title(self) -> str:
        return self.text

    key_parts: ClassVar[tuple[str, ...]] = ("the files below", "the directory", "the user")

    def key(self, input_: Input) -> Observed:
        input_.mark_static()
        state = self.state
        return "workdir", state.shown(state.tree), state.workdir, state.config.user

    def content_key(self) -> None:
        return None

    def make(self) -> Made:
        tree, user = self.filesystems.tree(self.state.layers), self.state.config.user
        owner = users.owner(tree, user) if user and not self.state.windows else None  # whose users are in no file
        entries = copying.make_directory(tree, self.state.workdir, owner, self.made_ns)
        return Made(self.contents.name(entries, self.state.form.key_parts), entries)


def entered(state: State, instruction: Workdir) -> State:
    """Return ``state`` with the working directory of ``instruction``."""
    path = states.directory(state, state.workdir, instruction.path)
    return replace(state, config=replace(state.config, working_dir=path))
