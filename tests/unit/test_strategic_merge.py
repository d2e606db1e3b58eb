"""Strategic merge patches, by the examples of Kubernetes' documentation."""

from __future__ import annotations

import re
from typing import Any

import pytest

from orchestrator.nodes.kubernetes.strategic_merge import MalformedPatchError, merge

POD = {
    "containers": [{"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "b:1"}],
    "tolerations": [{"key": "disktype", "effect": "NoSchedule"}],
    "nodeSelector": {"os": "linux", "arch": "arm64"},
    "terminationGracePeriodSeconds": 5,
}


@pytest.mark.parametrize(
    ("patch", "field", "expected"),
    [
        ({"nodeSelector": {"pool": "x"}}, "nodeSelector", {"os": "linux", "arch": "arm64", "pool": "x"}),
        ({"nodeSelector": {"arch": None}}, "nodeSelector", {"os": "linux"}),
        ({"nodeSelector": {"$patch": "replace", "pool": "x"}}, "nodeSelector", {"pool": "x"}),
        ({"nodeSelector": {"$patch": "delete"}}, "nodeSelector", {}),
        ({"terminationGracePeriodSeconds": 60}, "terminationGracePeriodSeconds", 60),
        ({"tolerations": [{"key": "new"}]}, "tolerations", [{"key": "new"}]),
        (
            {"containers": [{"name": "b", "image": "b:2"}]},
            "containers",
            [POD["containers"][0], {"name": "b", "image": "b:2"}],  # type: ignore[index]
        ),
        ({"containers": [{"name": "a", "$patch": "delete"}]}, "containers", [{"name": "b", "image": "b:1"}]),
        ({"containers": [{"$patch": "replace"}, {"name": "c"}]}, "containers", [{"name": "c"}]),
        (
            {"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X", "$patch": "delete"}]}]},
            "containers",
            [{"name": "a", "image": "a:1", "env": [{"name": "Y", "value": "2"}]}, {"name": "b", "image": "b:1"}],
        ),
        ({"volumes": [{"name": "v", "emptyDir": {"medium": None}}]}, "volumes", [{"name": "v", "emptyDir": {}}]),
        ({"$setElementOrder/containers": [{"name": "b"}]}, "containers", POD["containers"]),
    ],
)
def test_fields(patch: dict[str, Any], field: str, expected: object) -> None:
    before = repr(POD)
    assert merge(POD, patch)[field] == expected
    assert repr(POD) == before


def test_primitive_lists() -> None:
    assert merge({"finalizers": ["a"]}, {"finalizers": ["b", "a"]}) == {"finalizers": ["a", "b"]}
    assert merge({"args": ["a", "b"]}, {"$deleteFromPrimitiveList/args": ["a"]}) == {"args": ["b"]}
    assert merge({"args": ["a", "b"]}, {"args": ["c"]}) == {"args": ["c"]}


@pytest.mark.parametrize(
    ("patch", "why"),
    [
        ({"containers": [{"image": "x"}]}, "containers: each entry needs name"),
        ({"containers": ["x"]}, "containers: each entry needs name"),
        ({"nodeSelector": {"$patch": "remove"}}, "nodeSelector: $patch is merge, replace or delete"),
    ],
)
def test_patches_that_mean_nothing(patch: dict[str, Any], why: str) -> None:
    with pytest.raises(MalformedPatchError, match=re.escape(why)):
        merge(POD, patch)
