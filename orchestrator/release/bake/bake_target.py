"""A target of a bake file: its attributes, and how several declarations of one become one.

Source: https://docs.docker.com/build/bake/reference/#target.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from orchestrator.release.hcl import hcl_values as values
from orchestrator.release.hcl.hcl_values import HclValue, SequenceValue, ValueRefused
from orchestrator.release.model import Fields
from platforms.errors import printable

Texts = tuple[str, ...]
Kind = Literal["text", "texts", "pairs", "switch", "outputs", "caches", "secrets", "agents", "attests", "resources"]


class BakeTarget(msgspec.Struct, frozen=True):
    """A target as it is declared; None for what is not said. ``ATTRIBUTES`` has the names in a file."""

    name: str
    description: str = ""
    inherits: Texts = ()
    annotations: Texts | None = None
    attest: tuple[Fields, ...] | None = None
    context: str | None = None
    contexts: Mapping[str, str | None] | None = None
    dockerfile: str | None = None
    dockerfile_inline: str | None = None
    args: Mapping[str, str | None] | None = None
    labels: Mapping[str, str | None] | None = None
    tags: Texts | None = None
    cache_from: tuple[Fields, ...] | None = None
    cache_to: tuple[Fields, ...] | None = None
    target: str | None = None
    secret: tuple[Fields, ...] | None = None
    ssh: tuple[Fields, ...] | None = None
    platforms: Texts | None = None
    output: tuple[Fields, ...] | None = None
    pull: bool | None = None
    no_cache: bool | None = None
    network: str | None = None
    no_cache_filter: Texts | None = None
    shm_size: str | None = None
    ulimits: Texts | None = None
    resources: Fields | None = None
    call: str | None = None
    entitlements: Texts | None = None
    extra_hosts: Mapping[str, str | None] | None = None


ATTRIBUTES: Final[Mapping[str, Kind]] = {
    "description": "text",
    "inherits": "texts",
    "annotations": "texts",
    "attest": "attests",
    "context": "text",
    "contexts": "pairs",
    "dockerfile": "text",
    "dockerfile-inline": "text",
    "args": "pairs",
    "labels": "pairs",
    "tags": "texts",
    "cache-from": "caches",
    "cache-to": "caches",
    "target": "text",
    "secret": "secrets",
    "ssh": "agents",
    "platforms": "texts",
    "output": "outputs",
    "pull": "switch",
    "no-cache": "switch",
    "network": "text",
    "no-cache-filter": "texts",
    "shm-size": "text",
    "ulimits": "texts",
    "resources": "resources",
    "call": "text",
    "entitlements": "texts",
    "extra-hosts": "pairs",
}
"""The attributes of a target and the kinds of their values."""
_APPENDED: Final = ("annotations", "no_cache_filter", "ulimits", "entitlements", "inherits")
_BY_IDENTIFIER: Final = {"secret": "id", "ssh": "id", "attest": "type"}
"""Lists of which a later entry takes the place of an earlier one with the same value of this key."""
RESOURCES: Final = ("memory", "memory-swap", "cpu-shares", "cpu-period", "cpu-quota", "cpuset-cpus", "cpuset-mems")
"""The limits of steps that ``resources`` has."""
_SSH: Final = values.HclType(
    "object", attributes=(("id", values.STRING), ("paths", values.STRINGS)), optional=frozenset(("id", "paths"))
)
_TRUTHS: Final = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}


def truth(text: str) -> bool:
    """Return the bool that ``text`` is, as Go's ``strconv.ParseBool`` reads it. Raises ``ValueRefused``."""
    known = text.lower() if text in ("T", "F") or text in (text.lower(), text.upper(), text.title()) else ""
    if known not in _TRUTHS:
        raise ValueRefused(f"{printable(text)} is neither true nor false")
    return _TRUTHS[known]


def field(attribute: str) -> str:
    """Return the name of the field of ``BakeTarget`` for an attribute."""
    return attribute.replace("-", "_")


def read_attribute(attribute: str, value: HclValue) -> Any:
    """Return the value of a field of ``BakeTarget``. Raises ``ValueRefused``."""
    if value is None:
        return "" if attribute == "description" else None
    return _READERS[ATTRIBUTES[attribute]](value)


def attribute_value(attribute: str, found: Any) -> HclValue:
    """Return the value of a field of ``BakeTarget`` as expressions see it."""
    kind = ATTRIBUTES[attribute]
    if kind in ("outputs", "caches", "secrets", "attests"):
        return values.sequence("list", (values.mapping("map", dict(each)) for each in found or ()))
    if kind == "agents":
        return values.sequence("list", map(_agent_value, found or ()))
    if found is None or kind in ("text", "switch"):
        return found  # type: ignore[no-any-return]
    if kind == "texts":
        return values.sequence("list", found)
    return values.mapping("map", dict(found))


def _agent_value(fields: Fields) -> HclValue:
    paths = tuple(filter(None, dict(fields).get("paths", "").split(",")))
    return values.mapping("object", {"id": dict(fields).get("id", ""), "paths": values.sequence("list", paths)})


def _texts(value: HclValue) -> Texts:
    found = values.convert(value, values.STRINGS)
    assert isinstance(found, SequenceValue)
    if None in found.items:
        raise ValueRefused("an element is null")
    return tuple(map(values.as_string, found.items))


def _pairs(value: HclValue) -> Mapping[str, str | None]:
    found = values.convert(value, values.STRING_MAP)
    assert isinstance(found, values.MappingValue)
    return {key: None if each is None else values.as_string(each) for key, each in found.entries.items()}


def _entries(value: HclValue) -> list[HclValue]:
    if not isinstance(value, SequenceValue) or value.kind == "set":
        raise ValueRefused("a list is required")
    return [each for each in value.items if each not in ("", None)]


def _fields(value: HclValue) -> dict[str, str]:
    return {key: each for key, each in _pairs(value).items() if each is not None}


def _outputs(value: HclValue) -> tuple[Fields, ...]:
    return tuple(output(each) if isinstance(each, str) else _typed(_fields(each)) for each in _entries(value))


def _caches(value: HclValue) -> tuple[Fields, ...]:
    found: list[Fields] = []
    for each in _entries(value):
        found += caches(each) if isinstance(each, str) else (_typed(_fields(each)),)
    return tuple(found)


def _secrets(value: HclValue) -> tuple[Fields, ...]:
    return tuple(secret(each) if isinstance(each, str) else _secret(_fields(each)) for each in _entries(value))


def _agents(value: HclValue) -> tuple[Fields, ...]:
    return tuple(agent(each) if isinstance(each, str) else _agent(each) for each in _entries(value))


def _attests(value: HclValue) -> tuple[Fields, ...]:
    return tuple(attest(each) if isinstance(each, str) else _attest(_fields(each)) for each in _entries(value))


def _resources(value: HclValue) -> Fields:
    found = {key: each for key, each in _fields(value).items() if key in RESOURCES}
    for key in ("cpu-shares", "cpu-period", "cpu-quota"):
        if key in found:
            values.as_whole(found[key])
    return tuple((key, found[key]) for key in RESOURCES if key in found)


_READERS: Final[Mapping[Kind, Callable[[HclValue], Any]]] = {
    "text": values.as_string,
    "texts": _texts,
    "pairs": _pairs,
    "switch": values.as_bool,
    "outputs": _outputs,
    "caches": _caches,
    "secrets": _secrets,
    "agents": _agents,
    "attests": _attests,
    "resources": _resources,
}


def _csv(text: str) -> list[str]:
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise ValueRefused(f"{printable(text)} is not CSV") from error


def _words(text: str) -> dict[str, str]:
    """Return ``key=value,key=value`` by key in lower case."""
    found: dict[str, str] = {}
    for each in _csv(text):
        key, equals, value = each.partition("=")
        if not equals:
            raise ValueRefused(f"{printable(each)} is not KEY=VALUE")
        found[key.strip().lower()] = value
    return found


def _typed(fields: dict[str, str]) -> Fields:
    if not fields.get("type"):
        raise ValueRefused("a type is required")
    return tuple(each for each in fields.items() if each != ("dest", ""))


def output(text: str) -> Fields:
    """Return the output that ``text`` is: a directory, ``-``, or fields. Raises ``ValueRefused``."""
    if text == "-":
        return (("type", "tar"), ("dest", "-"))
    if _csv(text) == [text] and not text.startswith("type="):
        return (("type", "local"), ("dest", text))
    return _typed(_words(text))


def caches(text: str) -> tuple[Fields, ...]:
    """Return the caches that ``text`` is: fields of one, or references. Raises ``ValueRefused``."""
    if not text:
        return ()
    if "=" not in text:
        return tuple((("type", "registry"), ("ref", each)) for each in _csv(text))
    return (_typed(_words(text)),)


def secret(text: str) -> Fields:
    """Return the secret that ``text`` is. Raises ``ValueRefused``."""
    words = _words(text)
    unknown = [each for each in words if each not in ("type", "id", "source", "src", "env")]
    if unknown or words.get("type", "file") not in ("file", "env"):
        raise ValueRefused(f"{printable(text)} is not a secret: it has id=, src= and env=")
    file, variable = words.get("src", words.get("source", "")), words.get("env", "")
    if words.get("type") == "env" and not variable:
        file, variable = "", file
    return _secret({"id": words.get("id", ""), "src": file, "env": variable})


def _secret(fields: dict[str, str]) -> Fields:
    return tuple((key, fields[key]) for key in ("id", "src", "env") if fields.get(key))


def agent(text: str) -> Fields:
    """Return the SSH agent or key that ``text`` is: ``ID`` or ``ID=PATH,PATH``."""
    identifier, equals, paths = text.partition("=")
    return (("id", identifier), ("paths", paths)) if equals and paths else (("id", identifier),)


def _agent(value: HclValue) -> Fields:
    found = values.convert(value, _SSH)
    assert isinstance(found, values.MappingValue)
    paths = found.entries["paths"]
    texts = list(map(values.as_string, paths.items)) if isinstance(paths, SequenceValue) else []
    if any("," in each for each in texts):
        raise ValueRefused("a path has a comma")
    identifier = values.as_string(found.entries["id"] or "")
    return (("id", identifier), ("paths", ",".join(texts))) if texts else (("id", identifier),)


def attest(text: str) -> Fields:
    """Return the attestation that ``text`` is. Raises ``ValueRefused``."""
    found = _attest(_words(text))
    if not dict(found).get("type"):
        raise ValueRefused("a type is required")
    return found


def _attest(fields: dict[str, str]) -> Fields:
    disabled = truth(fields.get("disabled", "false"))
    rest = tuple(each for each in fields.items() if each[0] not in ("type", "disabled"))
    return (("type", fields.get("type", "")), *((("disabled", "true"),) if disabled else ()), *rest)


def merged(one: BakeTarget, other: BakeTarget) -> BakeTarget:
    """Return ``one`` with what ``other`` says: it replaces, or is added to, what was said."""
    found: dict[str, Any] = {}
    for attribute, kind in ATTRIBUTES.items():
        name = field(attribute)
        old, new = getattr(one, name), getattr(other, name)
        if new is None or new == "":
            continue
        if name in _APPENDED:
            found[name] = (*(old or ()), *new)
        elif kind == "pairs":
            said = {key: each for key, each in new.items() if each is not None or name == "contexts"}
            found[name] = {**(old or {}), **said}
        elif name in ("secret", "ssh", "attest", "cache_from"):
            found[name] = unique(name, (*(old or ()), *new))
        elif name == "resources":
            found[name] = tuple({**dict(old or ()), **dict(new)}.items())
        else:
            found[name] = new
    return msgspec.structs.replace(one, **found)


def unique(name: str, entries: tuple[Fields, ...]) -> tuple[Fields, ...]:
    """Return the entries of the field ``name``, each once, as BuildKit's clients do."""
    if name in _BY_IDENTIFIER:
        key = _BY_IDENTIFIER[name]
        found: dict[str, Fields] = {}
        for each in entries:
            found[dict(each).get(key, "")] = each
        return tuple(found.values())
    items = list(entries)
    for at in range(len(items) - 2, -1, -1):
        for later in range(at + 1, len(items)):
            if dict(items[at]) == dict(items[later]):
                items[later], items[-1] = items[-1], items[later]
                items.pop()
                break
    return tuple(items)


def normalised(target: BakeTarget) -> BakeTarget:
    """Return ``target`` without repeated and empty entries of its lists."""
    entitlements = target.entitlements or ()
    if target.network == "host":
        entitlements = (*entitlements, "network.host")
    found: dict[str, Any] = {"entitlements": _once(entitlements)}
    for name in ("annotations", "tags", "platforms", "no_cache_filter", "ulimits"):
        found[name] = _once(getattr(target, name) or ()) if getattr(target, name) is not None else None
    for name in ("attest", "secret", "ssh", "cache_from", "cache_to", "output"):
        entries = getattr(target, name)
        found[name] = unique(name, entries) if entries else None
    if target.contexts is not None:
        found["contexts"] = {key: each for key, each in target.contexts.items() if each} or None
    return msgspec.structs.replace(target, **found)


def _once(texts: Texts) -> Texts:
    return tuple(dict.fromkeys(filter(None, texts)))
