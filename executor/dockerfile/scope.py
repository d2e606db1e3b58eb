"""Which variables an instruction sees: ARG and ENV, in the order in which they stand.

Before the first FROM there is the global scope: the platform ARGs (TARGETARCH and the like) and the ARGs that stand
there. FROM sees it and nothing else. A stage begins with its base image's ENV; a global ARG is seen after the stage has
named it again. Whoever passes ``--build-arg`` overrides a default everywhere, predefined ones too.

Source: Dockerfile reference, "ARG": "Scope", "Using ARG variables", "Predefined ARGs", "Automatic platform ARGs".
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from typing import Final, cast

from executor.dockerfile.instructions import Arg
from executor.dockerfile.stages import Dockerfile
from executor.dockerfile.words import Meter, expand
from platforms.errors import DockerfileError

PROXIES: Final = frozenset(
    name
    for upper in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (upper, upper.lower())
)
"""ARGs that need no declaration: RUN sees them, and neither history nor cache keys do unless a stage declares them."""


def global_scope(
    dockerfile: Dockerfile, build_args: Mapping[str, str], predefined: Mapping[str, str]
) -> dict[str, str]:
    """The variables that FROM sees. ``predefined`` holds the platform ARGs, which build args override.

    Raises DockerfileError where a default cannot be expanded.
    """
    scope = {name: build_args.get(name, value) for name, value in predefined.items()}
    seen = Meter().over(scope)
    for arg in dockerfile.args:
        for name, default in arg.assignments:
            if name in build_args:
                scope[name] = build_args[name]
            elif default is not None:
                scope[name] = _expanded(arg, default, seen, dockerfile.escape)
    return scope


def declared(
    arg: Arg,
    env: Mapping[str, str],
    build_args: Mapping[str, str],
    global_scope: Mapping[str, str],
    escape: str = "\\",
) -> tuple[tuple[str, str | None], ...]:
    """What an ARG of a stage sets: names and values, None for a name without one, which sets nothing.

    The value is the build arg's, else the default's, expanded by the stage's variables ``env`` and those that the same
    line sets before it, else the global scope's. Raises DockerfileError where a default cannot be expanded.
    """
    own: dict[str, str] = {}
    seen = ChainMap(own, cast(MutableMapping[str, str], env))  # only looked into
    found: list[tuple[str, str | None]] = []
    for name, default in arg.assignments:
        if name in build_args:
            value: str | None = build_args[name]
        elif default is not None:
            value = _expanded(arg, default, seen, escape)
        else:
            value = global_scope.get(name)
        if value is not None:
            own[name] = value
        found.append((name, value))
    return tuple(found)


def _expanded(arg: Arg, default: str, env: Mapping[str, str], escape: str) -> str:
    try:
        return expand(default, env, escape=escape)
    except DockerfileError as error:
        problem = error.problem
        raise DockerfileError(problem.what, remedy=problem.remedy, where=arg.location) from error
