"""``--format`` of ``kanifold index inspect``: ``json``, or templates as for buildx.

A template is text with ``{{.FIELD…}}``, ``{{json .FIELD…}}`` and ``{{json (index .FIELD "KEY")}}`` in it. Fields are
those of buildx (``.Name``, ``.Manifest``, ``.Image``, ``.Provenance``, ``.SBOM``), and below them the keys of the
documents, as these or as Go's structs spell them. The rest of Go's template language is refused.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

from executor.image.manifest import Index
from orchestrator.index.inspection import Inspection, plain, table
from platforms import decoding
from platforms.errors import UsageError

_ACTION: Final = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PATH: Final = re.compile(r"(?:\.[A-Za-z_][A-Za-z0-9_]*)+|\.")
_INDEX: Final = re.compile(
    r'\(?\s*index\s+((?:\.[A-Za-z_]\w*)+)\s+("(?:[^"\\]|\\.)*"|\d{1,6})\s*\)?((?:\.[A-Za-z_]\w*)*)'
)
_REMEDY: Final = "use json, {{json .Manifest}}, {{json .Image}}, {{.Name}}, {{.Manifest.Digest}} or the like, and jq"


class _Action(msgspec.Struct, frozen=True):
    """An action ``{{…}}``: a field by its path, an item of it, and a path below that."""

    path: tuple[str, ...]
    as_json: bool = False
    key: str | int | None = None
    below: tuple[str, ...] = ()


Template = tuple[str | _Action, ...]
"""Text and actions."""


def parse(text: str) -> Template:
    """Parse a template. Raises ``UsageError`` for unsupported syntax."""
    found: list[str | _Action] = []
    end, trimmed = 0, False
    for match in _ACTION.finditer(text):
        before, inner = text[end : match.start()], match[1]
        before = before.lstrip() if trimmed else before
        found += [before.rstrip() if inner.startswith("- ") else before, _action(inner.strip("- \t\n"))]
        end, trimmed = match.end(), inner.endswith(" -")
    found.append(text[end:].lstrip() if trimmed else text[end:])
    if any(isinstance(each, str) and ("{{" in each or "}}" in each) for each in found):
        raise UsageError(f"--format {text[:200]!r}: a brace is not closed, or not opened", remedy=_REMEDY)
    if not any(isinstance(each, _Action) for each in found):
        raise UsageError(f"--format {text[:200]!r} shows nothing of the image", remedy=_REMEDY)
    return tuple(each for each in found if each)


def render(template: Template, found: Inspection) -> str:
    """Return the text of ``template``. Raises ``UsageError`` for missing fields."""
    return "".join(each if isinstance(each, str) else _value(each, found) for each in template)


def _action(text: str) -> _Action:
    as_json = text.startswith(("json ", "json("))
    rest = text.removeprefix("json").strip() if as_json else text
    if match := _INDEX.fullmatch(rest):
        key = match[2]
        item: str | int = int(key) if key.isdecimal() else str(decoding.from_json(key))
        return _Action(_split(match[1]), as_json, item, _split(match[3]))
    if _PATH.fullmatch(rest):
        return _Action(_split(rest), as_json)
    raise UsageError(f"--format: {{{{{text[:200]}}}}} is not understood", remedy=_REMEDY)


def _split(path: str) -> tuple[str, ...]:
    return tuple(each for each in path.split(".") if each)


def _value(action: _Action, found: Inspection) -> str:
    if action.path == ("Manifest",) and not action.as_json and action.key is None:
        return "\n".join(" ".join(line.splitlines()) for line in table(found))
    value = _field(_root(action.path, found), action.path[1:], action)
    if action.key is not None:
        value = _field(_item(value, action.key), action.below, action)
    if action.as_json:
        return json.dumps(value, indent=2)
    if isinstance(value, dict | list):
        raise UsageError(
            f"--format: {_written(action)} is more than a word", remedy=f"write {{{{json {_written(action)}}}}}"
        )
    return "" if value is None else str(value)


def _root(path: tuple[str, ...], found: Inspection) -> Any:
    match path[:1]:
        case ():
            return {"name": found.name, "manifest": _manifest(found), "image": _image(found)}
        case ("Name",):
            return found.name
        case ("Manifest",):
            return _manifest(found)
        case ("Image",):
            return _image(found)
        case ("Provenance",):
            return _of_platforms(
                {key: {"SLSA": each[-1]} for key, each in found.statements("provenance").items()}, found
            )
        case ("SBOM",):
            return _of_platforms({key: _sbom(each) for key, each in found.statements("sbom").items()}, found)
        case _:
            raise UsageError(f"--format: there is no field .{path[0]}", remedy=_REMEDY)


def _manifest(found: Inspection) -> dict[str, Any]:
    root = found.root
    if not isinstance(root.content, Index):
        return plain(root.descriptor)
    document = decoding.from_json(root.data)
    shown = {"schemaVersion": 2, **plain(root.descriptor), "manifests": document["manifests"]}
    return shown | ({"annotations": document["annotations"]} if document.get("annotations") else {})


def _image(found: Inspection) -> Any:
    return _of_platforms(found.configs(), found)


def _of_platforms(by_platform: dict[str, Any], found: Inspection) -> Any:
    """Return a mapping by platform if there are several, as buildx does; else the only value."""
    images = sum(each is not None for each in found.platforms)
    return by_platform if images > 1 else next(iter(by_platform.values()), {})


def _sbom(predicates: list[Any]) -> dict[str, Any]:
    more = {"AdditionalSPDXs": predicates[1:]} if len(predicates) > 1 else {}
    return {"SPDX": predicates[0], **more}


def _field(value: Any, path: tuple[str, ...], action: _Action) -> Any:
    for name in path:
        folded = _folded(name)
        found = next((key for key in value if _folded(key) == folded), None) if isinstance(value, dict) else None
        if found is None:
            raise UsageError(f"--format: there is no field {name} in {_written(action)}", remedy=_REMEDY)
        value = value[found]
    return value


def _item(value: Any, key: str | int) -> Any:
    try:
        return value[key]
    except (KeyError, IndexError, TypeError):
        there = ", ".join(map(str, value)) if isinstance(value, dict) else ""
        raise UsageError(
            f"--format: there is no item {key!r}", why=f"there are {there}" if there else "", remedy=_REMEDY
        ) from None


def _folded(name: str) -> str:
    """Return a normalised field name, equal for ``DiffIDs`` and ``diff_ids``, ``OSVersion`` and ``os.version``."""
    return name.replace("_", "").replace(".", "").casefold()


def _written(action: _Action) -> str:
    return "." + ".".join(action.path)
