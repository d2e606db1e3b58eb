"""The account of ``ci/kustomize/base``: it suffices, and each verb of its Role is needed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from cluster_builds import Farm

BASE = Path(__file__).resolve().parents[2] / "ci" / "kustomize" / "base"
RULES = yaml.safe_load((BASE / "role.yaml").read_text())["rules"]
VERBS = [
    (group, resource, verb)
    for rule in RULES
    for group in rule["apiGroups"]
    for resource in rule["resources"]
    for verb in rule["verbs"]
]
NEEDED = [each for each in VERBS if each[1] != "events" and each != ("", "pods/exec", "create")]
DOCKERFILE = "FROM scratch\nCOPY Dockerfile /\n"


def account(farm: Farm, *, without: tuple[str, str, str] | None = None) -> Farm:
    """Return the farm for the account of ``ci/kustomize/base``, whose Role lacks a verb."""
    cluster, namespace = farm.cluster, farm.namespace
    cluster.kubectl("apply", "-n", namespace, "-k", BASE)
    if without is not None:
        kept = [
            {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
            for group, resource, verb in VERBS
            if (group, resource, verb) != without
        ]
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "kanifold"}}
        cluster.kubectl("apply", "-n", namespace, "-f", "-", text=yaml.safe_dump({**role, "rules": kept}))
    token = cluster.kubectl("create", "token", "-n", namespace, "kanifold").strip()
    return farm.as_user(cluster.client_configuration(token))


@pytest.mark.slow
def test_the_role_suffices(farm: Farm) -> None:
    allowed = account(farm)
    done = allowed.build("FROM {base}\nRUN arch >/arch\n", platforms="linux/amd64,linux/arm64", arch="amd64&arch=arm64")
    assert done.code == 0, done.said
    farm.assert_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("denied", NEEDED, ids=" ".join)
def test_each_verb_is_needed_and_missed_by_its_name(farm: Farm, denied: tuple[str, str, str]) -> None:
    _, resource, verb = denied
    begun = time.monotonic()
    done = account(farm, without=denied).build(DOCKERFILE, arch="amd64")
    assert f'cannot {verb} resource "{resource}"' in done.said
    assert done.code != 0
    assert time.monotonic() - begun < 60


@pytest.mark.slow
@pytest.mark.parametrize("denied", sorted(set(VERBS) - set(NEEDED)), ids=" ".join)
def test_builds_go_on_without_events(farm: Farm, denied: tuple[str, str, str]) -> None:
    """And without ``create pods/exec`` before Kubernetes 1.35."""
    done = account(farm, without=denied).build(DOCKERFILE, arch="amd64")
    assert done.code == 0, done.said
    farm.assert_nothing_is_left()
