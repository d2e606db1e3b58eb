"""What the steps of a job will probably look up in a context, from the text of the Dockerfile alone.

The listing of all of it is requested at once (``sent_context``). What variables name is not known yet, and what a
trigger of a base image copies; it is requested when a step needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from executor.dockerfile import Stage
from executor.dockerfile.instructions import Add, Copy, Instruction, Run
from executor.protocol import ContextPattern
from executor.rootfs.tree import Tree, TreeOptions
from executor.solver import graph
from executor.solver.copying import CopySource, normal_path
from executor.solver.graph import MAIN_CONTEXT, FromContext, JobPlan
from executor.solver.statwalk import pattern_of, source_of

_NOWHERE: Final = Tree(-1, b"", TreeOptions())
_EVERYTHING: Final = ContextPattern(b"/", wildcards=False)


def usual_patterns(plan: JobPlan, context: str) -> Iterator[ContextPattern]:
    """Yield the patterns that the needed stages look up in the context ``context``, as far as the text tells."""
    wanted = FromContext(context)
    for index in plan.graph.stages:
        stage = plan.dockerfile.stages[index]
        if plan.graph.bases[index] == wanted:
            yield _EVERYTHING
        if not graph.replaced(plan.dockerfile, stage, plan.scope, plan.named):
            for each in stage.instructions:
                yield from _of(plan, stage, each, wanted)


def _of(plan: JobPlan, stage: Stage, step: Instruction, wanted: FromContext) -> Iterator[ContextPattern]:
    match step:
        case Copy() | Add():
            name = step.from_ if isinstance(step, Copy) else ""
            parents = isinstance(step, Copy) and step.parents
            if _comes_from(plan, stage, step, name, wanted) and all(map(_is_plain, step.exclude)):
                for text in step.sources:
                    if _is_plain(text) and "://" not in text:
                        source = source_of(_NOWHERE, text, parents=parents, context=True)
                        yield pattern_of(source, step.exclude)
        case Run():
            for mount in step.mounts:
                seeded = mount.type == "cache" and mount.from_
                if (mount.type == "bind" or seeded) and _comes_from(plan, stage, step, mount.from_, wanted):
                    if seeded:
                        yield _EVERYTHING
                    elif _is_plain(mount.source):
                        path = normal_path("/", mount.source or "/")
                        yield pattern_of(CopySource(_NOWHERE, path, wildcards=False), ())
        case _:
            pass


def _comes_from(plan: JobPlan, stage: Stage, step: Instruction, name: str, wanted: FromContext) -> bool:
    """Whether ``--from=name`` of ``step``, or its absence, is the context ``wanted``."""
    if not name:
        return wanted == MAIN_CONTEXT
    numbers = not isinstance(step, Run)
    found = graph.named_origin(plan.dockerfile, name, stage.index, step.location, plan.named, numbers=numbers)
    return _is_plain(name) and found == wanted


def _is_plain(text: str) -> bool:
    """Whether expanding variables and quotes does not change ``text``."""
    return not any(each in text for each in "$\\'\"")
