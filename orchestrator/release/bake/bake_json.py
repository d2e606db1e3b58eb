"""A release as ``docker buildx bake --print`` prints one: groups and targets, with the keys of a bake file.

What a bake file has no key for (nodes and tests) is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.release.model import DEFAULT_GROUP, Fields, Group, ReleaseImage


def document(images: Sequence[ReleaseImage], groups: Sequence[Group], names: Sequence[str]) -> dict[str, Any]:
    """Return the ``images`` that are built for ``names``: groups and images that were asked for."""
    wanted = tuple(names) or (DEFAULT_GROUP,)
    shown = {each.name: {"targets": list(each.members)} for each in groups if each.name in wanted}
    if DEFAULT_GROUP not in shown:
        members = wanted if names else tuple(each.name for each in images)
        shown = {DEFAULT_GROUP: {"targets": list(members)}, **shown}
    return {"group": shown, "target": {each.name: target(each) for each in images}}


def target(image: ReleaseImage) -> dict[str, Any]:
    """Return one image, without the keys that have no value."""
    found: dict[str, Any] = {
        "description": image.description,
        "annotations": list(image.annotations),
        "attest": _all(image.attest),
        "context": image.context,
        "contexts": dict(image.contexts),
        "dockerfile": image.dockerfile or "Dockerfile",
        "dockerfile-inline": image.dockerfile_inline,
        "args": dict(image.args),
        "labels": dict(image.labels),
        "tags": list(image.tags),
        "cache-from": _all(image.cache_from),
        "cache-to": _all(image.cache_to),
        "target": image.target,
        "secret": _all(image.secrets),
        "ssh": [_agent(dict(each)) for each in image.ssh],
        "platforms": list(image.platforms),
        "output": _all(image.outputs),
        "pull": image.pull,
        "no-cache": image.no_cache,
        "network": image.network,
        "no-cache-filter": list(image.no_cache_filter),
        "shm-size": image.shm_size,
        "ulimits": list(image.ulimits),
        "call": image.call,
        "entitlements": list(image.entitlements),
        "extra-hosts": dict(image.extra_hosts),
    }
    return {key: value for key, value in found.items() if value not in (None, "", [], {})}


def _all(values: Sequence[Fields]) -> list[dict[str, str]]:
    return [dict(each) for each in values]


def _agent(fields: dict[str, str]) -> dict[str, Any]:
    paths = fields.get("paths", "")
    return {"id": fields.get("id", ""), **({"paths": paths.split(",")} if paths else {})}
