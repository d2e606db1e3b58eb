"""The steps COPY and ADD: their cache key, and the layer as a plan of entries (``copying``)."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from executor.dockerfile import Stage, copy_checks, modes
from executor.dockerfile.instructions import Add, Copy
from executor.solver import copying, users
from executor.solver.content import Contents
from executor.solver.copying import CopyOptions, normal_path
from executor.solver.graph import MAIN_CONTEXT, Origin
from executor.solver.inputs import Input
from executor.solver.origins import Origins
from executor.solver.services import FileSystems
from executor.solver.sources import FileSource, Sources
from executor.solver.state import State
from executor.solver.step import Made
from executor.solver.treename import Observed


def copied_from(origins: Origins, stage: Stage, instruction: Copy | Add) -> FileSource:
    """Return the files that the paths of ``instruction``, a step of ``stage``, refer to."""
    origin: Origin = MAIN_CONTEXT
    if isinstance(instruction, Copy) and instruction.from_:
        origin = origins.named(instruction.from_, stage, instruction.location, numbers=True)
    return origins.files(origin)


class CopyStep(msgspec.Struct, frozen=True):
    """A COPY or ADD with its variables expanded."""

    contents: Contents
    filesystems: FileSystems
    made_ns: int
    """The modification time of directories that are created, nanoseconds."""
    number: int
    state: State
    instruction: Copy | Add
    sources: Sources
    by_content: ClassVar[bool] = True

    @property
    def text(self) -> str:
        instruction = self.instruction
        flags = (("chown", instruction.chown), ("chmod", instruction.chmod))
        words = [
            "ADD" if isinstance(instruction, Add) else "COPY",
            *(["--parents"] if self._parents else []),
            *(f"--{name}={value}" for name, value in flags if value),
            *instruction.sources,
            *(f"<<{each.name}" for each in instruction.heredocs),
            instruction.destination,
        ]
        return f"{' '.join(words)} # buildkit"

    @property
    def title(self) -> str:
        return self.instruction.original

    key_parts: ClassVar[tuple[str, ...]] = (
        "the files below",
        "the destination",
        "the owner",
        "the mode",
        "what is excluded",
        "--link",
        "--parents",
        "--unpack",
        "the files",
    )

    def key(self, input_: Input) -> Observed:
        instruction = self.instruction
        input_.mark_static()  # the sources have inputs of their own
        return (
            "add" if isinstance(instruction, Add) else "copy",
            self.state.shown("" if self._alone else self.state.tree),
            self._destination,
            instruction.chown,
            instruction.chmod,
            instruction.exclude,
            self._alone,
            self._parents,
            instruction.unpack if isinstance(instruction, Add) else None,
            self.sources.key(),
        )

    def content_key(self) -> None:
        return None

    def make(self) -> Made:
        tree = None if self._alone else self.filesystems.tree(self.state.layers)
        plan = copying.CopyPlan(tree, self.contents.directory, self.made_ns)
        self.sources.copy_to(plan, self._destination, self._options())
        entries = plan.finish()
        return Made(self.contents.name(entries, self.state.form.key_parts), entries)

    @property
    def _alone(self) -> bool:
        """Whether the layer does not depend on the stage (``--link``).

        ``--link`` has no effect together with ``--chmod`` (BuildKit, dockerfile2llb/convert_copy.go).
        """
        return self.instruction.link and not self.instruction.chmod

    @property
    def _parents(self) -> bool:
        return isinstance(self.instruction, Copy) and self.instruction.parents

    @property
    def _destination(self) -> str:
        """The destination: absolute; a trailing ``/`` or ``/.`` is kept."""
        text = self.instruction.destination
        if self.state.windows:
            from executor.solver import windows_paths

            path, text = windows_paths.normal_path(self.state.workdir, text or "."), windows_paths.slashed(text)
        else:
            path = normal_path(self.state.workdir, text or ".")
        if text in ("", ".") or text.endswith(("/", "/.")):
            return path.rstrip("/") + "/"
        return path

    def _options(self) -> CopyOptions:
        """Evaluate ``--chown``, ``--chmod`` and ``--exclude``. Names of users are looked up in the stage."""
        chown, chmod = self.instruction.chown, self.instruction.chmod
        owner = None
        if chown:
            owner = users.owner(None if copy_checks.numeric(chown) else self.filesystems.tree(self.state.layers), chown)
        number = modes.octal(chmod) if chmod else None
        return CopyOptions(
            owner=owner,
            mode=modes.parse(chmod) if chmod else None,
            parents_mode=0o755 if number is None else number & 0o777,
            exclude=self.instruction.exclude,
        )
