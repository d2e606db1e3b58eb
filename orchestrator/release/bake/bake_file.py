"""Reading ``docker-bake.hcl``, ``docker-bake.json`` and Compose files as a release.

Source: https://docs.docker.com/build/bake/reference/ and, for the order of files and overrides,
https://docs.docker.com/build/bake/overrides/.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from executor.dockerfile.suggestions import hint
from orchestrator.release.bake import bake_overrides, bake_target
from orchestrator.release.bake.bake_definitions import Declared, Definitions
from orchestrator.release.bake.bake_overrides import TargetOverride
from orchestrator.release.bake.bake_target import BakeTarget
from orchestrator.release.hcl.hcl_syntax import FilePlace, HclBody
from orchestrator.release.model import Release, ReleaseImage
from platforms import regular
from platforms.errors import Location, UsageError, printable
from platforms.host import host

FILE_LIMIT: Final = 1 << 20
"""Maximum size of a file in bytes."""
_DEPTH_LIMIT: Final = 64
"""Through how many others a target may inherit."""
_REMOTE: Final = ("http://", "https://", "git://", "ssh://", "git@", "github.com/")
_YAML: Final = (".yml", ".yaml")


def read(paths: Sequence[str], variables: Mapping[str, str], overrides: Sequence[str]) -> Release:
    """Return the release that the files declare together.

    ``variables`` take precedence over those of the environment; ``overrides`` are ``TARGET.KEY[.NAME]=VALUE``. Paths in
    the files are relative to the working directory, as bake takes them. Raises ``UsageError`` with file, line and
    column; ``EnvironmentUnfit`` if HCL cannot be read because the extra is not installed.
    """
    declared = _declared([(each, _contents(each)) for each in paths], variables)
    targets: dict[str, BakeTarget] = {}
    for each in declared.targets:
        targets[each.name] = bake_target.merged(targets[each.name], each) if each.name in targets else each
    chosen = bake_overrides.parse(overrides, targets)
    resolver = _Resolver(targets, chosen, declared.places)
    images = tuple(_image(resolver.resolved(each), declared) for each in targets.values())
    groups = {each.name: each for each in declared.groups}  # the last one counts
    return Release(", ".join(paths), ".", images, tuple(groups.values()))


def _contents(path: str) -> bytes:
    if path.startswith(_REMOTE):
        why = "a definition from elsewhere could read files of this machine and run anything in its builds"
        raise UsageError(
            f"{printable(path)} is not a local file", why=why, remedy="clone it, look at it, and name the file"
        )
    try:
        with regular.open_file(path) as file:
            data = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}", why=error.strerror or str(error)) from error
    if len(data) > FILE_LIMIT:
        raise UsageError(f"{path} is too large", why=f"it has more than {FILE_LIMIT} bytes")
    return data


def _declared(files: Sequence[tuple[str, bytes]], variables: Mapping[str, str]) -> Declared:
    """Return what Compose files declare, then what bake files do."""
    compose = [each for each in files if each[0].lower().endswith(_YAML)]
    bodies = [_body(*each) for each in files if each not in compose]
    built_in = {"BAKE_CMD_CONTEXT": "cwd://", "BAKE_LOCAL_PLATFORM": _local_platform()}
    found = Declared((), (), {})
    if compose:
        from orchestrator.release import compose_file

        found = compose_file.declared(compose, variables)
    if bodies:
        other = Definitions(bodies, built_in, variables).declared()
        places = {**found.places, **other.places}
        found = Declared((*found.targets, *other.targets), (*found.groups, *other.groups), places)
    return found


def _local_platform() -> str:
    """Return the platform of this machine as bake names it: a variant only of 32-bit Arm."""
    found = host()
    variant = f"/{found.variant}" if found.architecture == "arm" and found.variant else ""
    return f"{found.os}/{found.architecture}{variant}"


def _body(path: str, data: bytes) -> HclBody:
    from orchestrator.release.hcl import hcl_parser, json_body

    return json_body.parse(data, path) if path.lower().endswith(".json") else hcl_parser.parse(data, path)


class _Resolver:
    """Gives targets what they inherit, and their overrides."""

    def __init__(
        self,
        targets: Mapping[str, BakeTarget],
        overrides: Mapping[str, Mapping[tuple[str, str], TargetOverride]],
        places: Mapping[str, FilePlace],
    ) -> None:
        self._targets = targets
        self._overrides = overrides
        self._places = places

    def resolved(self, target: BakeTarget) -> BakeTarget:
        """Return ``target`` with all that it inherits, and with overrides. Raises ``UsageError``."""
        found = self._visit(target, {}, 0)
        assert found is not None
        return found

    def _visit(self, target: BakeTarget, visited: dict[str, BakeTarget | None], depth: int) -> BakeTarget | None:
        """Return the resolved target; None if it is being resolved, in a cycle: then it adds nothing."""
        if target.name in visited:
            return visited[target.name]
        if depth > _DEPTH_LIMIT:
            raise self._refusal(target, "it inherits through too many others")
        visited[target.name] = None
        parents = BakeTarget(target.name)
        for name in target.inherits:
            if name not in self._targets:
                near = hint(name, self._targets)
                raise self._refusal(target, f"it inherits from {printable(name)}, which is not there{near}")
            parent = self._visit(self._targets[name], visited, depth + 1)
            if parent is not None:
                parents = bake_target.merged(parents, replace(parent, inherits=()))
        found = bake_target.merged(parents, replace(target, inherits=()))
        found = bake_target.normalised(bake_overrides.apply(found, self._overrides.get(target.name, {})))
        visited[target.name] = found
        return found

    def _refusal(self, target: BakeTarget, why: str) -> UsageError:
        place = self._places.get(target.name)
        what = f"the target {target.name} cannot be resolved"
        return place.refusal(what, why=why) if place is not None else UsageError(what, why=why)


def _image(target: BakeTarget, declared: Declared) -> ReleaseImage:
    place = declared.places.get(target.name)
    where: Location | None = place.source.location(place.line) if place is not None else None
    return ReleaseImage(
        name=target.name,
        description=target.description,
        context=_cleaned(target.context if target.context is not None else "."),
        dockerfile=target.dockerfile or "Dockerfile",
        dockerfile_inline=target.dockerfile_inline,
        target=target.target,
        platforms=target.platforms or (),
        args=tuple((target.args or {}).items()),
        contexts=tuple((key, each) for key, each in (target.contexts or {}).items() if each is not None),
        tags=target.tags or (),
        labels=tuple((target.labels or {}).items()),
        annotations=target.annotations or (),
        secrets=target.secret or (),
        ssh=target.ssh or (),
        cache_from=target.cache_from or (),
        cache_to=target.cache_to or (),
        outputs=target.output or (),
        attest=target.attest or (),
        no_cache=target.no_cache,
        no_cache_filter=target.no_cache_filter or (),
        pull=target.pull,
        network=target.network,
        shm_size=target.shm_size,
        ulimits=target.ulimits or (),
        resources=target.resources or (),
        extra_hosts=tuple((target.extra_hosts or {}).items()),
        entitlements=target.entitlements or (),
        call=target.call,
        where=where,
    )


def _cleaned(context: str) -> str:
    """Return the path of a local context without superfluous parts; anything else as it is."""
    if "://" in context or context.startswith(_REMOTE) or context.startswith("target:"):
        return os.path.normpath(context.removeprefix("cwd://")) if context.startswith("cwd://") else context
    return os.path.normpath(context) if context else "."
