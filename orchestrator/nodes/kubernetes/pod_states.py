"""Pods as the API shows them, and their states in words for users."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec

from orchestrator.nodes.kubernetes.job_manifest import CONTAINER
from platforms.errors import ConnectionLost, EnvironmentUnfit, KanifoldError, OutOfMemory, PodDisrupted, printable


class ObjectMeta(msgspec.Struct, frozen=True, rename="camel"):
    """meta/v1 ObjectMeta, as far as it is used."""

    name: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] = {}
    deletion_timestamp: str | None = None


class PodCondition(msgspec.Struct, frozen=True):
    """core/v1 PodCondition."""

    type: str
    status: str
    reason: str = ""
    message: str = ""


class ContainerWaiting(msgspec.Struct, frozen=True):
    """core/v1 ContainerStateWaiting."""

    reason: str = ""
    message: str = ""


class ContainerTerminated(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 ContainerStateTerminated."""

    exit_code: int = 0
    reason: str = ""
    message: str = ""


class ContainerState(msgspec.Struct, frozen=True):
    """core/v1 ContainerState: one of the three is there."""

    waiting: ContainerWaiting | None = None
    running: dict[str, object] | None = None
    terminated: ContainerTerminated | None = None


class ContainerStatus(msgspec.Struct, frozen=True):
    """core/v1 ContainerStatus."""

    name: str
    state: ContainerState = ContainerState()


class PodStatus(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 PodStatus."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: tuple[PodCondition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()


class PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 PodSpec."""

    node_name: str = ""
    node_selector: dict[str, str] = {}


class Pod(msgspec.Struct, frozen=True):
    """core/v1 Pod."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def job(self) -> str:
        """The name of its Job."""
        labels = self.metadata.labels
        return labels.get("batch.kubernetes.io/job-name", "") or labels.get("job-name", "")

    @property
    def job_uid(self) -> str:
        """The uid of its Job."""
        labels = self.metadata.labels
        return labels.get("batch.kubernetes.io/controller-uid", "") or labels.get("controller-uid", "")

    @property
    def container(self) -> ContainerState:
        """The state of the container with the executor."""
        return next((each.state for each in self.status.container_statuses if each.name == CONTAINER), ContainerState())

    @property
    def is_running(self) -> bool:
        """Whether the container with the executor runs."""
        return self.container.running is not None and self.metadata.deletion_timestamp is None

    @property
    def is_terminal(self) -> bool:
        """Whether it has ended for good, and takes nothing of a quota any more."""
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def is_over(self) -> bool:
        """Whether nothing will run in it any more."""
        return self.is_terminal or self.container.terminated is not None

    def condition(self, kind: str) -> PodCondition | None:
        """Return the condition ``kind``."""
        return next((each for each in self.status.conditions if each.type == kind), None)


class Involved(msgspec.Struct, frozen=True):
    """core/v1 ObjectReference."""

    kind: str = ""
    name: str = ""


class ClusterEvent(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 ClusterEvent."""

    metadata: ObjectMeta = ObjectMeta()
    involved_object: Involved = Involved()
    reason: str = ""
    message: str = ""
    type: str = ""

    def shortened(self) -> ClusterEvent:
        """Return what is kept of it: whoever may write to the namespace writes events as long as an object may be."""
        return ClusterEvent(
            involved_object=self.involved_object,
            reason=self.reason[:_WORD],
            message=self.message[:_MESSAGE],
            type=self.type[:_WORD],
        )


class StartFailure(msgspec.Struct, frozen=True):
    """Why a Pod does not start."""

    error: KanifoldError
    patience: float
    """Seconds after which it is an error: it may pass."""


_MESSAGE: Final = 4096
_WORD: Final = 100
"""Characters of a message, and of a word, that are looked at."""
_WORDS: Final = 1000
"""Characters of what is told of one."""
_AVAILABLE: Final = re.compile(r"(\d+)/(\d+) nodes are available: ?(.*)", re.DOTALL)
_TAINT: Final = re.compile(r"node\(s\) had untolerated taint\(?s?\)? ?\{([^}]*)\}")
_EXCEEDED: Final = re.compile(r"exceeded quota: (\S+), requested: (\S+), used: (\S+), limited: (\S+)")
_QUOTA: Final = re.compile(r"(?:exceeded|status unknown for) quota: ?(.*)", re.DOTALL)
_RACED: Final = re.compile(r"cannot be fulfilled on resourcequotas \"([^\"\s]+)\"")
"""Others have taken places of a quota at the same moment, more often than the API server tries again."""
_LASTING: Final = re.compile(r" is forbidden: | is invalid: |denied the request")
"""What is refused for what it is, and not because something is away for a moment."""
_REASONS: Final = (
    (
        re.compile(r"node\(s\) didn't match Pod's node affinity/selector"),
        "of another architecture, or without the labels",
    ),
    (re.compile(r"node\(s\) didn't match Pod's node affinity"), "outside of the affinity"),
    (re.compile(r"Insufficient cpu"), "without enough free CPU"),
    (re.compile(r"Insufficient memory"), "without enough free memory"),
    (re.compile(r"Insufficient ephemeral-storage"), "without enough free disk"),
    (re.compile(r"Too many pods"), "with as many Pods as it takes"),
    (re.compile(r"node\(s\) were unschedulable"), "cordoned"),
    (re.compile(r"node\(s\) had volume node affinity conflict"), "where the volume is not"),
)
_REFUSED_IMAGES: Final = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_UNPULLED: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable"})
_UNSTARTED: Final = frozenset({
    "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError", "ContainerCannotRun",
})  # fmt: skip
_DISRUPTIONS: Final = {
    "PreemptionByScheduler": "it was preempted by a Pod of a higher priority",
    "PreemptionByKubeScheduler": "it was preempted by a Pod of a higher priority",
    "DeletionByTaintManager": "its node has got a taint that it does not tolerate, or is gone",
    "EvictionByEvictionAPI": "it was evicted: its node is drained, or somebody asked for it",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "its node had no more room for it, or shuts down",
}


def waiting_words(pod: Pod | None, events: Sequence[ClusterEvent], architecture: str) -> str:
    """Return what a Pod that does not run yet waits for; ``events`` are those of it and of its Job, the newest last."""
    if pod is None:
        refused = _refusal(events)
        if refused is None:
            return "waiting for its Pod"
        return quota_words(refused.message) or f"the Pod is refused: {printable(refused.message)}"
    scheduled = pod.condition("PodScheduled")
    if not pod.spec.node_name:
        if scheduled is not None and scheduled.status == "False":
            return f"waiting for a node with {architecture}: {unschedulable_words(scheduled.message)}"
        return f"waiting for a node with {architecture}"
    where = f"on node {printable(pod.spec.node_name, 80)}"
    waiting = pod.container.waiting
    if waiting is not None and waiting.reason in _UNPULLED:
        return f"cannot pull the image {where}, it is tried again: {printable(waiting.message)}"
    latest = events[-1] if events else None
    if latest is not None and latest.reason == "Pulling":
        return f"pulling the image {where}"
    if latest is not None and latest.type == "Warning" and latest.reason in ("FailedMount", "FailedAttachVolume"):
        return f"waiting for a volume {where}: {printable(latest.message)}"
    return f"starting {where}"


def unschedulable_words(message: str) -> str:
    """Return what the scheduler says of nodes: ``0 of 3 fit: 1 with the taint a=b, 2 cordoned``."""
    found = _AVAILABLE.match(message[:_MESSAGE])
    if found is None:
        return printable(message) or "the scheduler has found none yet"
    reasons = re.split(r"\. ?(?:preemption|no new claims)", found[3])[0].rstrip(". ")
    told = ", ".join(_reason(each.strip()) for each in re.split(r", (?=\d+ )", reasons) if each.strip())
    count = f"{found[1]} of {found[2]} fit"
    return printable(f"{count}: {told}" if told else count, _WORDS)


def _reason(text: str) -> str:
    count, _, rest = text.partition(" ")
    if not count.isdecimal():
        return printable(text)
    taint = _TAINT.search(rest)
    if taint is not None:
        key, _, value = taint[1].partition(":")
        return f"{count} with the taint {printable(key + ('=' + value.strip() if value.strip() else ''), 120)}"
    return next((f"{count} {words}" for pattern, words in _REASONS if pattern.search(rest)), printable(text))


def quota_refusal(events: Sequence[ClusterEvent]) -> str:
    """Return in words that a quota has refused the Pod of a Job; an empty text if none has. ``events``: the Job's."""
    refused = _refusal(events)
    return "" if refused is None else quota_words(refused.message)


def quota_words(message: str) -> str:
    """Return what the API says of a quota: ``waiting for the quota few: pods 5 of 5``.

    ``message`` has ``exceeded quota: few, requested: pods=1, used: pods=5, limited: pods=5``, or something like it; an
    empty text if it is about something else.
    """
    message = message[:_MESSAGE]
    found = _EXCEEDED.search(message)
    if found is None:
        other = _RACED.search(message) or _QUOTA.search(message)
        return "" if other is None else f"waiting for the quota: {printable(other[1])}"
    requested, used, limited = (dict(_amounts(each)) for each in found.groups()[1:])
    counts = (
        f"{printable(name)} {printable(used.get(name, '0'))} of {printable(limited.get(name, '?'))}"
        + ("" if wanted == "1" else f", {printable(wanted)} wanted")
        for name, wanted in requested.items()
    )
    return printable(f"waiting for the quota {printable(found[1])}: {', '.join(counts)}", _WORDS)


def _amounts(text: str) -> Iterator[tuple[str, str]]:
    """Yield the names and quantities of ``pods=5,requests.cpu=2``."""
    for each in text.split(","):
        name, _, amount = each.partition("=")
        yield name, amount


def _refusal(events: Sequence[ClusterEvent]) -> ClusterEvent | None:
    return next((each for each in reversed(events) if each.reason == "FailedCreate"), None)


def start_failure(pod: Pod | None, events: Sequence[ClusterEvent], node: str) -> StartFailure | None:
    """Return why the Pod of an executor on ``node`` will not start; None if nothing speaks against it."""
    if pod is None:
        refused = _refusal(events)
        if refused is None or quota_words(refused.message):
            return None
        return _refused(refused.message, node)
    waiting = pod.container.waiting
    if waiting is None:
        return None
    latest = events[-1] if events else None
    if latest is not None and latest.reason == "FailedMount" and "not found" in latest.message:
        error = EnvironmentUnfit(
            f"node {node}: a volume of the Pod is not there",
            why=printable(latest.message, 500),
            remedy="create it in the namespace, or correct registry-secret= or store= in the node's address",
        )
        return StartFailure(error, 30.0)
    why = printable(": ".join(filter(None, (waiting.reason, waiting.message))), 500)
    if waiting.reason in _REFUSED_IMAGES | _UNPULLED:
        error = EnvironmentUnfit(
            f"node {node}: the image cannot be pulled",
            why=why,
            remedy="correct image= in the node's address, or give it image-pull-secrets=",
        )
        return StartFailure(error, 0.0 if waiting.reason in _REFUSED_IMAGES else 60.0)
    if waiting.reason in _UNSTARTED:
        error = EnvironmentUnfit(
            f"node {node}: the container cannot be started", why=why, remedy="correct the node's address or template"
        )
        return StartFailure(error, 20.0)
    return None


def _refused(message: str, node: str) -> StartFailure:
    text = printable(re.sub(r'^Error creating: pods "[^"]*" is ', "", message), 600)
    remedy = "see what the namespace allows: kubectl describe job, kubectl get events"
    if "PodSecurity" in message:
        remedy = "choose a profile that the namespace allows: profile=baseline or profile=restricted in the address"
    error = EnvironmentUnfit(f"node {node}: the namespace refuses the Pod", why=text, remedy=remedy)
    return StartFailure(error, 1.0 if _LASTING.search(message[:_MESSAGE]) else 60.0)


Kind = Literal["lost", "memory"]


def end(pod: Pod | None, events: Sequence[ClusterEvent], node: str) -> KanifoldError:
    """Return the error of an executor on ``node`` whose Pod ended before it was done; None: the Pod is not there."""
    what = f"the executor on node {node} was ended by the cluster"
    memory = "give it more memory: memory= and memory-limit= in the node's address"
    killed = next((each for each in reversed(events) if each.reason in ("DeadlineExceeded", "Preempted")), None)
    if killed is not None and killed.reason == "DeadlineExceeded":
        return EnvironmentUnfit(what, why="its Job has reached activeDeadlineSeconds", remedy="raise deadline= there")
    if pod is None:
        return PodDisrupted(what, why="its Pod was deleted", remedy="see kubectl get events")
    terminated = pod.container.terminated
    if terminated is not None and terminated.reason == "OOMKilled":
        return OutOfMemory(f"the executor on node {node} ran out of memory", why="OOMKilled", remedy=memory)
    if pod.status.reason == "Evicted":
        return PodDisrupted(
            what, why=f"evicted from {printable(pod.spec.node_name, 80)}: {printable(pod.status.message, 500)}"
        )
    if pod.status.reason == "DeadlineExceeded":
        return EnvironmentUnfit(what, why="its Job has reached activeDeadlineSeconds", remedy="raise deadline= there")
    disrupted = pod.condition("DisruptionTarget")
    if disrupted is not None and disrupted.status == "True":
        why = _DISRUPTIONS.get(disrupted.reason) or printable(disrupted.reason, 80)
        return PodDisrupted(what, why=f"{why} ({printable(disrupted.message, 300)})" if disrupted.message else why)
    if killed is not None:
        return PodDisrupted(what, why=_DISRUPTIONS["PreemptionByScheduler"])
    if terminated is not None:
        said = printable(terminated.message, 500)
        why = f"the container ended with exit status {terminated.exit_code}" + (f": {said}" if said else "")
        return ConnectionLost(what, why=why)
    if pod.metadata.deletion_timestamp is not None:
        return PodDisrupted(what, why="its Pod was deleted", remedy="see kubectl get events")
    return ConnectionLost(what, why=printable(pod.status.message or pod.status.reason or pod.status.phase, 500))
