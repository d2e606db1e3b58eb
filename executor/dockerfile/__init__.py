"""Reading Dockerfiles: bytes to lines, lines to instructions, instructions to stages; and expanding their words.

    dockerfile = parse(data, "Dockerfile")             DockerfileError, with its location, for invalid syntax
    stage = find_stage(dockerfile, target)             --target, by name or number
    scope = global_scope(dockerfile, build_args, …)    the variables that FROM sees
    declared(arg, env, build_args, scope)              the variables that an ARG of a stage sets
    expand(instruction, env, dockerfile.escape)        the instruction with its variables replaced

``instructions`` has a class for each instruction, ``ignore`` the patterns of .dockerignore, ``checks`` the build
checks.
"""

from __future__ import annotations

from executor.dockerfile.expansion import expand
from executor.dockerfile.scope import declared, global_scope
from executor.dockerfile.stages import (
    Dockerfile,
    Stage,
    find_base,
    find_named,
    find_source,
    find_stage,
    parse,
    trigger,
)

__all__ = [
    "Dockerfile",
    "Stage",
    "declared",
    "expand",
    "find_base",
    "find_named",
    "find_source",
    "find_stage",
    "global_scope",
    "parse",
    "trigger",
]
