"""Strategic merge patches of a Pod template, as ``kubectl patch`` applies them.

Objects are merged field by field; ``null`` removes a field. Lists whose entries have a key (``containers`` by name) are
merged by it, others are replaced. ``$patch: delete`` removes the entry of the same key, ``$patch: replace`` replaces
the object or the list that it is in; ``$setElementOrder/…`` is ignored, ``$deleteFromPrimitiveList/…`` removes values.
Source: Kubernetes documentation, "Update API Objects in Place Using kubectl patch"; keys by the ``patchMergeKey`` of
the types of core/v1.
"""

from __future__ import annotations

from typing import Any, Final

KEYS: Final = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "env": "name",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
}
"""The fields of a Pod template that are merged by a key of their entries, and the key."""
PRIMITIVE_SETS: Final = frozenset({"finalizers"})
"""Lists of texts that are joined."""
_DIRECTIVE: Final = "$patch"
_DELETE_FROM: Final = "$deleteFromPrimitiveList/"
_ORDER: Final = "$setElementOrder/"


class MalformedPatchError(Exception):
    """A patch that cannot be applied. The text says where."""


def merge(original: Any, patch: Any, path: str = "") -> Any:
    """Return ``original`` with ``patch`` applied; both stay as they are. Raises ``MalformedPatchError``."""
    if not isinstance(patch, dict):
        return patch
    directive = patch.get(_DIRECTIVE, "merge")
    rest = {key: value for key, value in patch.items() if key != _DIRECTIVE}
    if directive == "replace":
        return _applied(rest)
    if directive not in ("merge", "delete"):
        raise MalformedPatchError(f"{path or 'the top'}: $patch is merge, replace or delete, not {directive!r}")
    if directive == "delete":
        return {}
    found = dict(original) if isinstance(original, dict) else {}
    for key, value in rest.items():
        place = f"{path}.{key}" if path else key
        if key.startswith(_ORDER):
            continue
        if key.startswith(_DELETE_FROM):
            name = key.removeprefix(_DELETE_FROM)
            found[name] = [each for each in found.get(name, []) if each not in value]
        elif value is None:
            found.pop(key, None)
        elif isinstance(value, list):
            found[key] = _merged_list(key, found.get(key), value, place)
        else:
            found[key] = merge(found.get(key), value, place)
    return found


def _merged_list(name: str, original: Any, patch: list[Any], path: str) -> list[Any]:
    before = list(original) if isinstance(original, list) else []
    if name in PRIMITIVE_SETS:
        return [*before, *(each for each in patch if each not in before)]
    key = KEYS.get(name, "")
    if not key or any(isinstance(each, dict) and each.get(_DIRECTIVE) == "replace" for each in patch):
        return [_applied(each) for each in patch if not (isinstance(each, dict) and set(each) == {_DIRECTIVE})]
    for each in patch:
        if not isinstance(each, dict) or key not in each:
            raise MalformedPatchError(f"{path}: each entry needs {key}, by which entries are merged")
        place = next((number for number, old in enumerate(before) if old.get(key) == each[key]), None)
        if each.get(_DIRECTIVE) == "delete":
            before = [old for old in before if old.get(key) != each[key]]
        elif place is None:
            before.append(_applied(each))
        else:
            before[place] = merge(before[place], each, f"{path}[{each[key]}]")
    return before


def _applied(value: Any) -> Any:
    """Return ``value`` without directives, as it is added where nothing was."""
    if isinstance(value, dict):
        return {
            key: _applied(each)
            for key, each in value.items()
            if each is not None and not key.startswith((_DIRECTIVE, _ORDER, _DELETE_FROM))
        }
    if isinstance(value, list):
        return [_applied(each) for each in value if not (isinstance(each, dict) and each.get(_DIRECTIVE) == "delete")]
    return value
