"""The variables that an instruction sees: ARG and ENV, in the order of the file.

The global scope, before the first FROM, has the platform ARGs (TARGETARCH and the like) and the ARGs declared there;
FROM sees only these. A stage starts with the ENV of its base image; a global ARG is visible in a stage once declared
there again. ``--build-arg`` overrides every default, those of predefined ARGs too.

Source: Dockerfile reference, "ARG": "Scope", "Using ARG variables", "Predefined ARGs", "Automatic platform ARGs".
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from typing import Final, cast

from executor.dockerfile.instructions import Arg
from executor.dockerfile.stages import Dockerfile
from executor.dockerfile.words import ExpansionBudget, expand
from platforms.errors import DockerfileError

PROXIES: Final = frozenset(
    name
    for upper in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (upper, upper.lower())
)
"""ARGs that need no declaration: RUN sees them, but they enter neither history nor cache keys unless a stage declares
them."""


def global_scope(
    dockerfile: Dockerfile, build_args: Mapping[str, str], predefined: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables that FROM sees. ``predefined`` holds the platform ARGs, which build args override.

    Raises DockerfileError where a default cannot be expanded.
    """
    scope = {name: build_args.get(name, value) for name, value in predefined.items()}
    seen = ExpansionBudget().over(scope)
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
    """Return the names and values that an ARG of a stage sets; the value is None for a name without a value.

    The value is that of the build arg, else the default, expanded by the stage's variables ``env`` and those set
    earlier on the same line, else that of the global scope. Raises DockerfileError where a default cannot be expanded.
    """
    own: dict[str, str] = {}
    seen = ChainMap(own, cast(MutableMapping[str, str], env))  # read only
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
