"""Addresses of Kubernetes nodes."""

from __future__ import annotations

import pytest

from orchestrator.nodes.kubernetes.address import KubernetesAddress, Toleration, parse
from platforms.errors import UsageError

IMAGE = "image=registry.example.com/kanifold:1"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("kubernetes://prod/builds?{}", {"context": "prod", "namespace": "builds"}),
        ("kubernetes://prod?{}", {"context": "prod", "namespace": ""}),
        ("kubernetes://prod/?{}", {"context": "prod", "namespace": ""}),
        ("kubernetes:///builds?{}", {"context": "", "namespace": "builds"}),
        ("kubernetes://in-cluster/builds?{}", {"context": "in-cluster", "namespace": "builds"}),
        (
            "kubernetes://arn:aws:eks:eu-1:1:cluster%2Fbig/builds?{}",
            {"context": "arn:aws:eks:eu-1:1:cluster/big", "namespace": "builds"},
        ),
    ],
)
def test_the_place(url: str, expected: dict[str, str]) -> None:
    found = parse(url.format(IMAGE))
    assert {"context": found.context, "namespace": found.namespace} == expected
    assert found.profile == "baseline"


def test_every_option() -> None:
    found = parse(
        f"kubernetes://c/n?{IMAGE}&image-pull-policy=Always&image-pull-secrets=a,b&image-pull-secrets=c"
        "&profile=restricted&service-account=builder&registry-secret=push&store=cache-{arch}&store-size=20Gi"
        "&cpu=500m&memory=1.5Gi&cpu-limit=4&memory-limit=8Gi&node-selector=pool=builds,example.com/ssd="
        "&tolerations=builds=only:NoSchedule,spot&arch=amd64,arm64"
        "&context-limit=1Gi&context-repository=a.example/b&template=/etc/pod.yaml&deadline=2h&ttl=90&wait=15m"
    )
    assert found == KubernetesAddress(
        "c",
        "n",
        "registry.example.com/kanifold:1",
        "Always",
        ("a", "b", "c"),
        "restricted",
        "builder",
        "push",
        "cache-{arch}",
        "20Gi",
        "500m",
        "1.5Gi",
        "4",
        "8Gi",
        (("pool", "builds"), ("example.com/ssd", "")),
        (Toleration("builds", "only", "NoSchedule"), Toleration("spot")),
        ("amd64", "arm64"),
        1 << 30,
        "a.example/b",
        "/etc/pod.yaml",
        7200,
        90,
        900,
    )


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("", "it names no image: image=REGISTRY/kanifold:TAG"),
        ("imagee=a", "there is no option imagee (did you mean image?)"),
        (f"{IMAGE}&profile=restrictd", "(did you mean restricted?)"),
        (f"{IMAGE}&image=b", "the option image is there twice"),
        (f"{IMAGE}&cpu", "the option cpu has no value"),
        (f"{IMAGE}&cpu=", "the option cpu has no value"),
        (f"{IMAGE}&cpu=much", "cpu=much: that is no quantity (2, 500m, 4Gi)"),
        (f"{IMAGE}&memory=-1Gi", "that is no quantity"),
        (f"{IMAGE}&node-selector=pool", "a label is KEY=VALUE"),
        (f"{IMAGE}&tolerations=a=b:Never", "it is one of NoSchedule, PreferNoSchedule, NoExecute"),
        (f"{IMAGE}&arch=amd", "(did you mean amd64?)"),
        (f"{IMAGE}&template=pod.yaml", "write the path from / or ~ on"),
        (f"{IMAGE}&deadline=0", "it has to be more than 0"),
        (f"{IMAGE}&deadline=soon", "that is no duration"),
        (f"{IMAGE}&context-limit=0", "that is no size (64Mi, 1g)"),
        (f"{IMAGE}&context-limit=much", "that is no size"),
        (f"{IMAGE}&context-repository=a/b:c", "a repository has no tag and no digest"),
        (f"{IMAGE}&context-repository=a//b", "context-repository=a//b:"),
        (f"{IMAGE}&registry-secret=Push!", "that is no name of an object"),
        (f"{IMAGE}&store=../x", "that is no name of an object"),
        ("image=a/b:c:d", "image=a/b:c:d:"),
    ],
)
def test_what_is_wrong_is_named(query: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(f"kubernetes://c/n?{query}")
    assert why in refused.value.problem.why
    assert "docs/kubernetes.md" in refused.value.problem.remedy


@pytest.mark.parametrize("place", ["c/Builds", "c/a/b", "c/-", "a b/c", "c/n\n"])
def test_places_that_are_none(place: str) -> None:
    with pytest.raises(UsageError):
        parse(f"kubernetes://{place}?{IMAGE}")
