"""WORKDIR as a step: the directory is made where it is missing, by the stage's user."""

from __future__ import annotations

from typing import ClassVar

import msgspec
from msgspec.structs import replace

from executor.dockerfile.instructions import Workdir
from executor.rootfs import moment
from executor.solver import content, copying, users
from executor.solver import state as states
from executor.solver.inputs import Input
from executor.solver.origins import FileSystems
from executor.solver.state import State
from executor.solver.step import Made
from executor.solver.treename import Observed
from executor.solver.workshop import Workshop


class WorkdirStep(msgspec.Struct, frozen=True):
    """A WORKDIR. ``state`` has the directory as its working directory already."""

    workshop: Workshop
    filesystems: FileSystems
    number: int
    state: State
    by_content: ClassVar[bool] = True

    @property
    def text(self) -> str:
        return f"WORKDIR {self.state.workdir}"

    def key(self, taken: Input) -> Observed:
        taken.nothing()
        return "workdir", self.state.tree, self.state.workdir, self.state.config.user

    def other_key(self) -> None:
        return None

    def make(self) -> Made:
        tree, user = self.filesystems.tree(self.state), self.state.config.user
        owner = users.owner(tree, user) if user else None
        made = moment.nanoseconds(self.workshop.job.epoch)
        entries = copying.make_directory(tree, self.state.workdir, owner, made)
        return Made(content.name(self.workshop, entries), entries)


def entered(state: State, instruction: Workdir) -> State:
    """``state`` with the working directory of ``instruction``."""
    path = states.directory(state.workdir, instruction.path)
    return replace(state, config=replace(state.config, working_dir=path))
