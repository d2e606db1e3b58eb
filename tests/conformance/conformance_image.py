"""An image as plain JSON: the format in which BuildKit's result is recorded and kanifold's is compared.

Files of the base are not recorded (``golden.json`` has what the build changed), so that recordings are valid for newer
bases. Times are kept where they come from the build's sources; those of the build itself are not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from oci_layout import Entry, Seen

Picture = dict[str, Any]
"""``config``, ``history``, ``layers`` (how many), ``base``, ``tree`` and ``removed``; or the ``error``."""

SHORT = 120
"""Maximum size in bytes of a text file whose content is recorded."""


def picture(seen: Seen, base: Seen | None, since: float) -> Picture:
    """Return ``seen`` without what it has from ``base``. What was modified after ``since`` was modified by the
    build."""
    tree, below = entries(seen, since), entries(base, since) if base else {}
    return {
        "config": _config(seen),
        "history": [_history(each) for each in seen.config.get("history") or ()],
        "layers": len(seen.manifest["layers"] or ()),
        "base": base.config["architecture"] if base else None,
        "tree": {path: entry for path, entry in tree.items() if not _unchanged(entry, below.get(path))},
        "removed": sorted(below.keys() - tree.keys()),
    }


def _unchanged(entry: Picture, before: Picture | None) -> bool:
    if before is None:
        return False
    return entry == (before if "mtime" in entry else {key: before[key] for key in before if key != "mtime"})


def _config(seen: Seen) -> Picture:
    document = seen.config
    kept = {key: document[key] for key in ("architecture", "variant", "os", "author") if document.get(key)}
    return kept | {key: value for key, value in sorted(document.get("config", {}).items()) if value not in (None, "")}


def _history(each: Mapping[str, Any]) -> Picture:
    return {key: each[key] for key in ("created_by", "comment", "author", "empty_layer") if each.get(key)}


def entries(seen: Seen, since: float) -> dict[str, Picture]:
    r"""Return every path of the tree, with ``\xNN`` where it is not UTF-8, and its attributes."""
    firsts: dict[int, str] = {}
    found = {}
    for path in sorted(seen.tree):
        entry = seen.tree[path]
        first = firsts.setdefault(id(entry), path)
        found[_text(path)] = _entry(entry, since) | ({} if first == path else {"same_as": _text(first)})
    return found


def _entry(entry: Entry, since: float) -> Picture:
    said: Picture = {"type": entry.kind}
    if entry.kind == "symlink":
        said["target"] = _text(entry.target)
    else:
        said["mode"] = f"{entry.mode:04o}"
    said["owner"] = f"{entry.uid}:{entry.gid}"
    if entry.kind == "file":
        said |= _content(entry)
    if entry.kind in ("char", "block"):
        said["device"] = list(entry.device)
    if entry.xattrs:
        said["xattrs"] = {name: _text(value) for name, value in entry.xattrs}
    if entry.mtime < since:
        said["mtime"] = entry.mtime if entry.mtime % 1 else int(entry.mtime)
    return said


def _content(entry: Entry) -> Picture:
    raw = entry.content
    if raw is not None and len(raw) <= SHORT:
        try:
            return {"text": raw.decode()}
        except UnicodeDecodeError:
            pass
    return {"digest": entry.digest}


def _text(name: str) -> str:
    r"""A name as the recording writes it: bytes that are not UTF-8 as ``\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


# -- comparing ------------------------------------------------------------------------------------------------------


def differences(
    golden: Picture, seen: Seen, base: Seen | None, since: float, neutral: Callable[[str], str]
) -> list[str]:
    """Return how ``seen`` differs from ``golden``, one line each; empty for the same image.

    ``neutral`` replaces in a text what is different each time, as in the recording.
    """
    actual = json.loads(neutral(json.dumps(picture(seen, base, since))))
    lines = []
    for key in sorted(golden["config"].keys() | actual["config"].keys()):
        lines += _unequal(f"config {key}", golden["config"].get(key), actual["config"].get(key))
    for number in range(max(len(golden["history"]), len(actual["history"]))):
        lines += _unequal(f"history {number}", *(_at(each["history"], number) for each in (golden, actual)))
    for key in ("layers", "base"):
        lines += _unequal(key, golden[key], actual[key])
    tree, below = (json.loads(neutral(json.dumps(entries(each, since)))) if each else {} for each in (seen, base))
    expected = {path: entry for path, entry in below.items() if path not in golden["removed"]} | golden["tree"]
    for path in sorted(expected.keys() | tree.keys()):
        wanted, there = expected.get(path), tree.get(path)
        if wanted and there and (path in golden["tree"] or "mtime" in there):
            there = there if "mtime" in wanted else _timeless(there)
        elif wanted:
            wanted = _timeless(wanted)  # the base's own directory, in which something was made just now
        lines += _unequal(f"/{path}", wanted, there)
    return lines


def _timeless(entry: Picture) -> Picture:
    return {key: value for key, value in entry.items() if key != "mtime"}


def _at(items: list[Any], number: int) -> Any:
    return items[number] if number < len(items) else None


def _unequal(where: str, expected: Any, actual: Any) -> list[str]:
    if expected == actual:
        return []
    if isinstance(expected, dict) and isinstance(actual, dict):
        inside = sorted(key for key in expected.keys() | actual.keys() if expected.get(key) != actual.get(key))
        return [f"{where} {key}: expected {_show(expected.get(key))}, got {_show(actual.get(key))}" for key in inside]
    return [f"{where}: expected {_show(expected)}, got {_show(actual)}"]


def _show(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


# -- recordings -----------------------------------------------------------------------------------------------------


def dump(recorded: Picture) -> str:
    """A recording as JSON in which every path, history entry and config key has a line of its own."""
    lines = []
    for key, value in recorded.items():
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items())
            lines.append(f"  {json.dumps(key)}: {{\n{inner}\n  }}")
        elif isinstance(value, list) and value:
            inner = ",\n".join(f"    {json.dumps(each, ensure_ascii=False)}" for each in value)
            lines.append(f"  {json.dumps(key)}: [\n{inner}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
