"""The Dockerfile language: bytes -> lines -> instructions -> stages, and what its words mean.

    dockerfile = parse(data, "Dockerfile")             every line accounted for, or DockerfileError with its place
    stage = find_stage(dockerfile, target)             --target by name or number
    scope = global_scope(dockerfile, build_args, …)    what FROM sees
    declared(arg, env, build_args, scope)              what an ARG in a stage sets
    expand(instruction, env, dockerfile.escape)        the instruction with its variables filled in

``instructions`` has the classes, ``ignore`` the patterns of .dockerignore, ``checks`` the build checks.
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
