"""Resolving SOURCE_DATE_EPOCH, the upper bound of the timestamps in an image.

It is a number of seconds since 1970, or the name of a source whose time of last change is used: ``context``, a named
context, or a stage that consists of one ADD from a URL or repository. It comes from ``--build-arg``, the environment
(both in ``Request.build_args``) or an ARG before the first FROM. Source: BuildKit, dockerfile2llb/epoch.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from executor.dockerfile import Dockerfile, Stage, declared, expand
from executor.dockerfile.instructions import Add, Arg
from executor.dockerfile.words import ExpansionBudget
from executor.solver.named import Named
from orchestrator import contexts
from orchestrator.contexts import ContextFiles, FetchOptions
from platforms.errors import DockerfileError, UsageError

NAME: Final = "SOURCE_DATE_EPOCH"
_SECONDS: Final = r"[+-]?\d+"
_LATEST: Final = 253402300799
"""The last second of the year 9999, the limit of RFC 3339."""
_REMEDY: Final = "give seconds since 1970, or name the context, a named context, or a stage FROM scratch with one ADD"


def resolve(
    dockerfile: Dockerfile,
    given: Mapping[str, str],
    seen: Mapping[str, str],
    main: ContextFiles,
    named: Mapping[str, str],
    options: FetchOptions,
) -> int | None:
    """Return seconds since 1970; None when there is no SOURCE_DATE_EPOCH, or it is that of a directory.

    ``given``: the build args. ``seen``: the global scope. ``named``: the named contexts. Raises ``UsageError`` for an
    invalid value, ``DockerfileError`` for an unsuitable stage, and ``ContextError``.
    """
    value = given.get(NAME) or ("" if NAME in given else seen.get(NAME, ""))
    if not value:
        return None
    if re.fullmatch(_SECONDS, value):
        seconds = int(value[:20])
        if abs(seconds) > _LATEST:
            raise UsageError(f"invalid {NAME}: {value[:20]}", why="it is beyond the year 9999", remedy=_REMEDY)
        return seconds
    if value == "context":
        return contexts.changed(main, options)
    if context := Named(frozenset(named)).find(value):
        return _of_place(context, named[context], options)
    for stage in dockerfile.stages:
        if stage.name.casefold() == value.casefold():
            return _of_stage(dockerfile, stage, given, seen, options)
    raise UsageError(f"invalid {NAME}: {value}", remedy=_REMEDY)


def with_epoch_argument(given: Mapping[str, str], seen: Mapping[str, str], moment: int | None) -> dict[str, str]:
    """Return the build args with the resolved number for stages that declare ``ARG SOURCE_DATE_EPOCH``."""
    rest = {name: value for name, value in given.items() if name != NAME}
    if moment is not None and (NAME in given or NAME in seen):
        return rest | {NAME: str(moment)}
    return rest | {NAME: ""} if NAME in seen else rest  # empty: overrides the Dockerfile's default


def _of_place(name: str, place: str, options: FetchOptions) -> int | None:
    if place.startswith(("docker-image://", "oci-layout://")):
        return None
    return contexts.changed(contexts.named(name, place, options), options)


def _of_stage(
    dockerfile: Dockerfile, stage: Stage, given: Mapping[str, str], seen: Mapping[str, str], options: FetchOptions
) -> int | None:
    def unfit(why: str) -> DockerfileError:
        return DockerfileError(
            f"{NAME} cannot be taken from the stage {stage.name}", why=why, remedy=_REMEDY, where=stage.location
        )

    if expand(stage.base, seen, dockerfile.escape).image != "scratch":
        raise unfit("it must be FROM scratch")
    env = {name: value for name, value in seen.items() if name != NAME}
    meter = ExpansionBudget()
    sources: list[str] = []
    for instruction in stage.instructions:
        if isinstance(instruction, Arg):
            found = declared(instruction, meter.over(env), given, env, dockerfile.escape)
            env |= {name: value for name, value in found if value is not None}
        elif isinstance(instruction, Add):
            sources += expand(instruction, env, dockerfile.escape).sources
        else:
            raise unfit("it must hold nothing but ARG and one ADD")
    if len(sources) != 1 or not contexts.is_remote(sources[0]):
        raise unfit("it must ADD exactly one URL or git repository")
    return contexts.changed(contexts.named(stage.name, sources[0], options), options)
