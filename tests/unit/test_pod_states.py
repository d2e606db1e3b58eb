"""States of Pods in words, from what the API says of them."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from orchestrator.nodes.kubernetes import pod_states
from orchestrator.nodes.kubernetes.pod_states import ClusterEvent, Pod
from platforms.errors import ConnectionLost, EnvironmentUnfit, KanifoldError, OutOfMemory, PodDisrupted


def pod(node: str = "", state: dict[str, Any] | None = None, **status: Any) -> Pod:
    containers = [{"name": "executor", "state": state}] if state is not None else []
    data = {
        "metadata": {"name": "p"},
        "spec": {"nodeName": node},
        "status": {"containerStatuses": containers, **status},
    }
    return msgspec.convert(data, Pod)


def event(reason: str, message: str = "", kind: str = "Normal") -> ClusterEvent:
    return ClusterEvent(reason=reason, message=message, type=kind)


def unschedulable(message: str) -> Pod:
    return pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "0/3 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, 2 "
            "node(s) didn't match Pod's node affinity/selector. preemption: 0/3 nodes are available: 3 Preemption is "
            "not helpful for scheduling.",
            "0 of 3 fit: 1 with the taint node-role.kubernetes.io/control-plane, 2 of another architecture, or without "
            "the labels",
        ),
        (
            "0/1 nodes are available: 1 node(s) had untolerated taint {dedicated: gpu}.",
            "0 of 1 fit: 1 with the taint dedicated=gpu",
        ),
        (
            "0/2 nodes are available: 1 Insufficient memory, 2 Insufficient cpu.",
            "0 of 2 fit: 1 without enough free memory, 2 without enough free CPU",
        ),
        ("0/2 nodes are available: 2 node(s) did something new.", "0 of 2 fit: 2 node(s) did something new"),
        ("no nodes available to schedule pods", "no nodes available to schedule pods"),
    ],
)  # fmt: skip
def test_why_no_node_fits(message: str, words: str) -> None:
    assert pod_states.waiting_words(unschedulable(message), (), "arm64") == f"waiting for a node with arm64: {words}"


@pytest.mark.parametrize(
    ("found", "events", "words"),
    [
        (None, (), "waiting for its Pod"),
        (
            None,
            (
                event(
                    "FailedCreate",
                    'Error creating: pods "p" is forbidden: exceeded quota: few, requested: pods=1,requests.memory=2Gi'
                    ", used: pods=5,requests.memory=7Gi, limited: pods=5,requests.memory=8Gi",
                    "Warning",
                ),
            ),
            "waiting for the quota few: pods 5 of 5, requests.memory 7Gi of 8Gi, 2Gi wanted",
        ),
        (
            None,
            (event("FailedCreate", "pods are forbidden: status unknown for quota: few, resources: pods", "Warning"),),
            "waiting for the quota: few, resources: pods",
        ),
        (
            None,
            (
                event(
                    "FailedCreate",
                    'Error creating: Operation cannot be fulfilled on resourcequotas "few": '
                    "the object has been modified; please apply your changes to the latest version and try again",
                ),
            ),
            "waiting for the quota: few",
        ),
        (pod(), (), "waiting for a node with arm64"),
        (pod("n1"), (), "starting on node n1"),
        (pod("n1", {"waiting": {"reason": "ContainerCreating"}}), (event("Pulling"),), "pulling the image on node n1"),
        (
            pod("n1", {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}),
            (event("Pulling"),),
            "cannot pull the image on node n1, it is tried again: not found",
        ),
        (
            pod("n1", {"waiting": {"reason": "ContainerCreating"}}),
            (event("FailedMount", "no such claim", "Warning"),),
            "waiting for a volume on node n1: no such claim",
        ),
    ],
)  # fmt: skip
def test_what_is_waited_for(found: Pod | None, events: tuple[ClusterEvent, ...], words: str) -> None:
    assert pod_states.waiting_words(found, events, "arm64") == words


@pytest.mark.parametrize(
    ("found", "events", "what", "why"),
    [
        (pod("n", {"waiting": {"reason": "InvalidImageName", "message": "bad"}}), (), "image cannot be pulled", "bad"),
        (pod("n", {"waiting": {"reason": "ImagePullBackOff", "message": "x"}}), (), "image cannot be pulled", "x"),
        (
            pod("n", {"waiting": {"reason": "CreateContainerConfigError", "message": "secret not found"}}),
            (),
            "the container cannot be started",
            "secret not found",
        ),
        (
            pod("n", {"waiting": {"reason": "ContainerCreating"}}),
            (event("FailedMount", 'secret "creds" not found', "Warning"),),
            "a volume of the Pod is not there",
            'secret "creds" not found',
        ),
        (
            None,
            (event("FailedCreate", 'Error creating: pods "x" is forbidden: violates PodSecurity "restricted"'),),
            "the namespace refuses the Pod",
            'forbidden: violates PodSecurity "restricted"',
        ),
    ],
)  # fmt: skip
def test_what_will_not_pass(found: Pod | None, events: tuple[ClusterEvent, ...], what: str, why: str) -> None:
    failure = pod_states.start_failure(found, events, "farm/arm64")
    assert failure is not None
    assert what in failure.error.problem.what
    assert why in failure.error.problem.why
    assert failure.error.problem.remedy


@pytest.mark.parametrize(
    ("message", "lasting"),
    [
        ('Error creating: pods "x" is forbidden: violates PodSecurity "restricted"', True),
        ('Error creating: Pod "x" is invalid: spec.containers[0].image: Required value', True),
        ('Error creating: admission webhook "policy.example.com" denied the request: no', True),
        ("Error creating: etcdserver: request timed out", False),
        ('Error creating: Internal error occurred: failed calling webhook "policy.example.com": EOF', False),
    ],
)
def test_a_refusal_that_may_pass_is_waited_for(message: str, lasting: bool) -> None:
    failure = pod_states.start_failure(None, (event("FailedCreate", message),), "farm/arm64")
    assert failure is not None
    assert (failure.patience < 10) is lasting


@pytest.mark.parametrize(
    "found", [None, pod(), pod("n", {"running": {}}), pod("n", {"waiting": {"reason": "Creating"}})]
)
def test_what_may_yet_start(found: Pod | None) -> None:
    assert pod_states.start_failure(found, (event("FailedCreate", "exceeded quota: a"),), "farm/arm64") is None


@pytest.mark.parametrize(
    ("found", "events", "kind", "why"),
    [
        (None, (), PodDisrupted, "its Pod was deleted"),
        (pod("n", {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}), (), OutOfMemory, "OOMKilled"),
        (
            pod("n1", phase="Failed", reason="Evicted", message="The node was low on resource: memory."),
            (),
            PodDisrupted,
            "evicted from n1: The node was low on resource: memory.",
        ),
        (
            pod("n", conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]),
            (),
            PodDisrupted,
            "it was preempted by a Pod of a higher priority",
        ),
        (
            pod("n", conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]),
            (),
            PodDisrupted,
            "it was evicted: its node is drained, or somebody asked for it",
        ),
        (None, (event("DeadlineExceeded"),), EnvironmentUnfit, "its Job has reached activeDeadlineSeconds"),
        (
            pod("n", {"terminated": {"exitCode": 2, "message": "boom"}}),
            (),
            ConnectionLost,
            "the container ended with exit status 2: boom",
        ),
    ],
)
def test_ends(found: Pod | None, events: tuple[ClusterEvent, ...], kind: type[KanifoldError], why: str) -> None:
    error = pod_states.end(found, events, "farm/arm64")
    assert type(error) is kind
    assert error.problem.why == why


def test_what_is_running() -> None:
    assert pod("n", {"running": {"startedAt": "x"}}).is_running
    assert not pod("n", {"terminated": {"exitCode": 0}}).is_running
    assert pod("n", {"terminated": {"exitCode": 0}}).is_over
    assert msgspec.convert({"metadata": {"labels": {"job-name": "j"}}}, Pod).job == "j"


@pytest.mark.parametrize(
    "message",
    [
        "exceeded quota: q, requested: "
        + ",".join(f"a{each}={each}" for each in range(90_000))
        + ", used: x, limited: y",
        "exceeded quota: " + "q" * 1_000_000,
        "0/3 nodes are available: " + "1 tired, " * 200_000,
        "9" * 5000 + "/3 nodes are available: 1 tired",
    ],
    ids=["resources", "a name", "reasons", "a number"],
)
def test_a_message_without_end_costs_no_time(message: str) -> None:
    begun = time.process_time()
    refused = event("FailedCreate", message)
    for words in (
        pod_states.waiting_words(None, [refused], "amd64"),
        pod_states.waiting_words(unschedulable(message), [], "amd64"),
    ):
        assert words and len(words) < 2000
    assert len(refused.shortened().message) < 5000
    assert time.process_time() - begun < 1.0
