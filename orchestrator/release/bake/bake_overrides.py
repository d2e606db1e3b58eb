"""``--set TARGET.KEY[.NAME]=VALUE`` of bake files: overriding what the declarations of targets say.

Source: https://docs.docker.com/reference/cli/docker/buildx/bake/#set. An override of a target that others inherit from
reaches these, so it is applied while inheritance is resolved, other than in ``overrides.py``.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from executor.dockerfile.suggestions import hint
from orchestrator.release.bake import bake_target as targets
from orchestrator.release.bake.bake_target import BakeTarget
from orchestrator.release.hcl.hcl_values import ValueRefused
from orchestrator.release.model import Fields
from platforms.errors import UsageError, printable

_ALIASES: Final = {
    "annotations": "annotation",
    "args": "arg",
    "entitlements": "entitlement",
    "extra-hosts": "extra-host",
    "labels": "label",
    "platforms": "platform",
    "resources": "resource",
    "secrets": "secret",
    "tags": "tag",
    "ulimits": "ulimit",
}
_TEXT_LISTS: Final = {
    "tag": "tags",
    "platform": "platforms",
    "annotation": "annotations",
    "entitlement": "entitlements",
    "no-cache-filter": "no_cache_filter",
    "ulimit": "ulimits",
}
_ADDED: Final = ("annotation", "entitlement", "attest")
"""Lists that values are always added to; an empty value clears them."""
_ENTRY_LISTS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "output": ("output", targets.output),
    "cache-from": ("cache_from", targets.caches),
    "cache-to": ("cache_to", targets.caches),
    "secret": ("secret", targets.secret),
    "ssh": ("ssh", targets.agent),
    "attest": ("attest", targets.attest),
}
_PAIRS: Final = {"arg": "args", "label": "labels", "contexts": "contexts", "extra-host": "extra_hosts"}
_TEXTS: Final = {
    "context": "context",
    "dockerfile": "dockerfile",
    "target": "target",
    "call": "call",
    "network": "network",
    "shm-size": "shm_size",
}
_SWITCHES: Final = {"no-cache": "no_cache", "pull": "pull"}
KEYS: Final = (*_TEXT_LISTS, *_ENTRY_LISTS, *_PAIRS, *_TEXTS, *_SWITCHES, "resource", "push", "load")


class TargetOverride(msgspec.Struct, frozen=True):
    """All values that one key of a target is set to."""

    key: str
    name: str
    """Of a value in a mapping, of a secret, or of a resource; "" for others."""
    values: tuple[str, ...] = ()
    adds: bool = False
    clears: bool = False


def parse(texts: Iterable[str], names: Iterable[str]) -> dict[str, dict[tuple[str, str], TargetOverride]]:
    """Return the overrides by target and key. Raises ``UsageError`` for a pattern that matches none of ``names``."""
    known = tuple(dict.fromkeys(names))
    found: dict[str, dict[tuple[str, str], TargetOverride]] = {}
    for text in texts:
        head, equals, value = text.partition("=")
        pattern, key, name = _head(text, head.removesuffix("+"))
        adds = head.endswith("+")
        if not equals and key != "arg":
            raise _wrong(text, "it is TARGET.KEY=VALUE")
        if adds and key not in (*_TEXT_LISTS, *_ENTRY_LISTS):
            raise _wrong(text, f"+= adds to a list, and {key} is none")
        for each in _matching(text, pattern, known):
            keys = found.setdefault(each, {})
            before = keys.get((key, name), TargetOverride(key, name))
            if not equals:
                inherited = os.environ.get(name)
                if inherited is not None:
                    keys[key, name] = replace(before, values=(inherited,))
            elif not adds and value == "":
                keys[key, name] = TargetOverride(key, name, () if _is_list(key, name) else ("",), clears=True)
            else:
                listed = (*before.values, value) if _is_list(key, name) else (value,)
                keys[key, name] = replace(before, values=listed, adds=adds and not before.clears)
    return found


def _is_list(key: str, name: str) -> bool:
    return (key in _TEXT_LISTS or key in _ENTRY_LISTS) and not name


def _head(text: str, head: str) -> tuple[str, str, str]:
    pattern, _, rest = head.partition(".")
    key, _, name = rest.partition(".")
    key = _ALIASES.get(key, key)
    if not pattern or not key:
        raise _wrong(text, "it is TARGET.KEY=VALUE")
    if key not in KEYS:
        raise _wrong(text, f"unknown key {printable(key)}{hint(key, KEYS)}", f"keys are {', '.join(KEYS)}")
    named = key in _PAIRS or key == "resource"
    if named != bool(name) and not (key == "secret" and name):
        raise _wrong(text, f"the key is {key}.NAME" if named else f"{key} has no names below it")
    return pattern, key, name


def _matching(text: str, pattern: str, names: tuple[str, ...]) -> list[str]:
    if pattern in names:
        return [pattern]
    expression = re.compile(fnmatch.translate(pattern.replace("[^", "[!")))
    found = [each for each in names if expression.match(each)]
    if not found:
        raise _wrong(text, f"no target is called {printable(pattern)}{hint(pattern, names)}")
    return found


def _wrong(text: str, why: str, remedy: str = "") -> UsageError:
    return UsageError(f"--set {printable(text)} is wrong", why=why, remedy=remedy)


def apply(target: BakeTarget, overrides: Mapping[tuple[str, str], TargetOverride]) -> BakeTarget:
    """Return ``target`` with its overrides. Raises ``UsageError``."""
    # A secret is declared before what it is read from is overridden.
    for each in sorted(overrides.values(), key=lambda each: each.key == "secret" and bool(each.name)):
        try:
            target = _applied(target, each)
        except ValueRefused as error:
            raise _wrong(f"{target.name}.{each.key}", str(error)) from error
    return target


def _applied(target: BakeTarget, each: TargetOverride) -> BakeTarget:
    key = each.key
    if key == "secret" and each.name:
        return _with_secret(target, each.name, each.values[-1])
    if key in _TEXT_LISTS:
        name = _TEXT_LISTS[key]
        kept = each.adds or (key in _ADDED and not each.clears)
        return replace(target, **{name: (*((getattr(target, name) or ()) if kept else ()), *each.values)})
    if key in _ENTRY_LISTS:
        name, read = _ENTRY_LISTS[key]
        found: tuple[Fields, ...] = ()
        for text in filter(None, each.values):
            found += read(text) if name.startswith("cache") else (read(text),)
        kept = each.adds or (key in _ADDED and not each.clears)
        before = (getattr(target, name) or ()) if kept else ()
        return replace(target, **{name: targets.unique(name, (*before, *found))})
    value = each.values[-1]
    if key in _PAIRS:
        name = _PAIRS[key]
        return replace(target, **{name: {**(getattr(target, name) or {}), each.name: value}})
    if key in _TEXTS:
        return replace(target, **{_TEXTS[key]: value})
    if key in _SWITCHES:
        return replace(target, **{_SWITCHES[key]: targets.truth(value)})
    if key == "resource":
        if each.name not in targets.RESOURCES:
            raise ValueRefused(f"unknown resource {printable(each.name)}{hint(each.name, targets.RESOURCES)}")
        return replace(target, resources=tuple({**dict(target.resources or ()), each.name: value}.items()))
    change = with_push if key == "push" else with_load
    return replace(target, output=change(target.output or (), wanted=targets.truth(value)))


def _with_secret(target: BakeTarget, name: str, value: str) -> BakeTarget:
    fresh = dict(targets.secret(value))
    if fresh.get("id", name) != name:
        raise ValueRefused(f"the id is another than {printable(name)}")
    found = list(target.secret or ())
    at = next((at for at, each in enumerate(found) if dict(each).get("id") == name), None)
    if at is None:
        raise ValueRefused(f"no secret {printable(name)} is declared")
    found[at] = tuple({"id": name, **fresh}.items())
    return replace(target, secret=tuple(found))


def with_push(outputs: tuple[Fields, ...], *, wanted: bool) -> tuple[Fields, ...]:
    """Return ``outputs`` so that the image is pushed, or is not."""
    found: list[Fields] = []
    for each in outputs:
        fields = dict(each)
        if fields.get("type") == "image":
            fields["push"] = "true" if wanted else "false"
        if wanted or fields.get("type") != "registry":
            found.append(tuple(fields.items()))
    if wanted and all(dict(each).get("type") == "docker" for each in outputs):
        found.append((("type", "image"), ("push", "true")))
    return tuple(found)


def with_load(outputs: tuple[Fields, ...], *, wanted: bool) -> tuple[Fields, ...]:
    """Return ``outputs`` so that the image is loaded; nothing changes if that is not ``wanted``."""
    types = {dict(each).get("type") for each in outputs}
    loaded = any(dict(each).get("type") == "docker" and "dest" not in dict(each) for each in outputs)
    if not wanted or loaded or types - {"docker", "image", "registry", "oci"}:
        return outputs
    return (*outputs, (("type", "docker"),))
