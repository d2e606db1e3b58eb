"""Addresses of Kubernetes nodes: ``kubernetes://CONTEXT/NAMESPACE?OPTION=VALUE&…``.

CONTEXT is one of the kubeconfig (percent-encoded where it has ``/``), ``in-cluster`` for the service account of the Pod
that the orchestrator runs in, or empty for the current context. Without NAMESPACE it is that of the context. Options
are named as the fields of a Pod or a Job that they set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, get_args
from urllib.parse import unquote

import msgspec

from executor.dockerfile.suggestions import hint
from orchestrator.nodes.node import PUSHED
from platforms import durations, sizes
from platforms.errors import UsageError, printable

SCHEME: Final = "kubernetes://"
IN_CLUSTER: Final = "in-cluster"
Profile = Literal["baseline", "restricted", "userns", "unconfined"]

_DNS_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DNS_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_QUANTITY: Final = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_LABEL_KEY: Final = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_EFFECTS: Final = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_PULL_POLICIES: Final = ("Always", "IfNotPresent", "Never")
ARCHITECTURES: Final = ("386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x")
"""Values of the label kubernetes.io/arch: GOARCH."""


class Toleration(msgspec.Struct, frozen=True):
    """A taint that is tolerated. ``value`` "" for any; ``effect`` "" for all."""

    key: str
    value: str = ""
    effect: str = ""


class KubernetesAddress(msgspec.Struct, frozen=True):
    """A namespace of a cluster, and how Jobs in it are made. "" and 0 stand for what is not set."""

    context: str
    namespace: str
    image: str = ""
    """Of the container that an executor runs in; it has Python 3.11 or later."""
    image_pull_policy: str = ""
    image_pull_secrets: tuple[str, ...] = ()
    profile: Profile = "baseline"
    service_account: str = ""
    registry_secret: str = ""
    """A Secret of type kubernetes.io/dockerconfigjson, for the registries that a build works with."""
    store: str = ""
    """A PersistentVolumeClaim that the store is kept on; ``{arch}`` in it is the architecture."""
    store_size: str = ""
    """``sizeLimit`` of the emptyDir that the store is on otherwise."""
    cpu: str = ""
    memory: str = ""
    cpu_limit: str = ""
    memory_limit: str = ""
    node_selector: tuple[tuple[str, str], ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    architectures: tuple[str, ...] = ()
    """Those that the cluster has, or gets when they are asked for; empty for those of its nodes."""
    context_limit: int = 64 << 20
    """Bytes of files of a context that a Pod lacks from which on they do not go over its stream if that can be: a git
    repository is fetched there, other files are read from ``context_repository``."""
    context_repository: str = ""
    """A repository for them, or ``image`` for that of the image; "" for none."""
    template: str = ""
    """The path of a file with a patch of the Pod template."""
    deadline: int = 3600
    """``activeDeadlineSeconds`` of a Pod: the seconds that a job may take from its start."""
    ttl: int = 300
    """``ttlSecondsAfterFinished`` of a Job."""
    patience: int = 900
    """Seconds that a Pod may take to be scheduled and started, while no other executor of the command builds there."""


def is_kubernetes(url: str) -> bool:
    """Whether ``url`` is the address of a Kubernetes node, valid or not."""
    return url.startswith(SCHEME)


def parse(url: str) -> KubernetesAddress:
    """Return the address in ``url``. Raises ``UsageError``."""
    return _Parser(url).parse()


class _Parser:
    """The address in ``url``."""

    def __init__(self, url: str) -> None:
        self._url = url

    def parse(self) -> KubernetesAddress:
        if not self._url.isprintable() or " " in self._url:
            raise self._refusal("it has spaces or control characters")
        place, _, query = self._url.removeprefix(SCHEME).partition("?")
        context, _, namespace = place.partition("/")
        namespace = namespace.removesuffix("/")
        if namespace and not _DNS_LABEL.fullmatch(namespace):
            raise self._refusal(f"{printable(namespace, 80)!r} is no namespace; a context's / is written %2F")
        fields: dict[str, Any] = {"context": unquote(context), "namespace": namespace}
        for word in filter(None, query.split("&")):
            key, equals, value = word.partition("=")
            if key not in _READERS:
                raise self._refusal(f"there is no option {printable(key, 80)}{hint(key, _READERS)}")
            if not equals or not value:
                raise self._refusal(f"the option {key} has no value")
            self._set(fields, key, unquote(value))
        found = KubernetesAddress(**fields)
        if not found.image:
            raise self._refusal("it names no image: image=REGISTRY/kanifold:TAG")
        return found

    def _set(self, fields: dict[str, Any], key: str, value: str) -> None:
        name, read = _READERS[key]
        try:
            found = read(value)
        except ValueError as error:
            raise self._refusal(f"{key}={printable(value, 80)}: {error}") from error
        if isinstance(found, tuple):
            before = fields.get(name, ())
            assert isinstance(before, tuple)
            fields[name] = (*before, *found)
        elif name in fields:
            raise self._refusal(f"the option {key} is there twice")
        else:
            fields[name] = found

    def _refusal(self, why: str) -> UsageError:
        return UsageError(
            f"invalid address of a node {printable(self._url, 120)!r}",
            why=why,
            remedy="write kubernetes://CONTEXT/NAMESPACE?image=IMAGE&OPTION=VALUE…; docs/kubernetes.md has the options",
        )


def _matching(pattern: re.Pattern[str], what: str, value: str) -> str:
    if not pattern.fullmatch(value):
        raise ValueError(f"that is no {what}")
    return value


def _name(value: str) -> str:
    return _matching(_DNS_NAME, "name of an object", value)


def _names(value: str) -> tuple[str, ...]:
    return tuple(_name(each) for each in value.split(","))


def _image(value: str) -> str:
    from executor.registry import reference

    try:
        reference.parse(value)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return value


def _repository(value: str) -> str:
    from executor.registry import reference

    if value == PUSHED:
        return value
    try:
        found = reference.parse(value)
    except UsageError as error:
        raise ValueError(str(error)) from error
    if found.tag or found.digest:
        raise ValueError("a repository has no tag and no digest")
    return str(found.repository_only())


def _size(value: str) -> int:
    found = sizes.number_of_bytes(value.removesuffix("i"))  # as the API writes it: 64Mi
    if not found:
        raise ValueError("that is no size (64Mi, 1g)")
    return found


def _quantity(value: str) -> str:
    return _matching(_QUANTITY, "quantity (2, 500m, 4Gi)", value)


def _seconds(value: str) -> int:
    found = durations.seconds(value)
    if found is None or found >= 1 << 31:
        raise ValueError("that is no duration (90, 90s, 15m, 2h)")
    return int(found)


def _positive(value: str) -> int:
    found = _seconds(value)
    if not found:
        raise ValueError("it has to be more than 0")
    return found


def _among(options: tuple[str, ...], value: str) -> str:
    if value not in options:
        raise ValueError(f"it is one of {', '.join(options)}{hint(value, options)}")
    return value


def _profile(value: str) -> str:
    return _among(get_args(Profile), value)


def _pull_policy(value: str) -> str:
    return _among(_PULL_POLICIES, value)


def _architectures(value: str) -> tuple[str, ...]:
    return tuple(_among(ARCHITECTURES, each) for each in value.split(","))


def _labels(value: str) -> tuple[tuple[str, str], ...]:
    return tuple(_label(each) for each in value.split(","))


def _label(value: str) -> tuple[str, str]:
    key, equals, text = value.partition("=")
    if not equals or not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(text):
        raise ValueError("a label is KEY=VALUE")
    return key, text


def _tolerations(value: str) -> tuple[Toleration, ...]:
    return tuple(_toleration(each) for each in value.split(","))


def _toleration(value: str) -> Toleration:
    label, colon, effect = value.partition(":")
    key, _, text = label.partition("=")
    if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(text):
        raise ValueError("a toleration is KEY[=VALUE][:EFFECT]")
    return Toleration(key, text, _among(_EFFECTS, effect) if colon else "")


def _path(value: str) -> str:
    path = os.path.expanduser(value)
    if not os.path.isabs(path):
        raise ValueError("write the path from / or ~ on")
    return path


def _claim(value: str) -> str:
    _name(value.replace("{arch}", "arch"))
    return value


_READERS: Final[Mapping[str, tuple[str, Callable[[str], object]]]] = {
    "image": ("image", _image),
    "image-pull-policy": ("image_pull_policy", _pull_policy),
    "image-pull-secrets": ("image_pull_secrets", _names),
    "profile": ("profile", _profile),
    "service-account": ("service_account", _name),
    "registry-secret": ("registry_secret", _name),
    "store": ("store", _claim),
    "store-size": ("store_size", _quantity),
    "cpu": ("cpu", _quantity),
    "memory": ("memory", _quantity),
    "cpu-limit": ("cpu_limit", _quantity),
    "memory-limit": ("memory_limit", _quantity),
    "node-selector": ("node_selector", _labels),
    "tolerations": ("tolerations", _tolerations),
    "arch": ("architectures", _architectures),
    "context-limit": ("context_limit", _size),
    "context-repository": ("context_repository", _repository),
    "template": ("template", _path),
    "deadline": ("deadline", _positive),
    "ttl": ("ttl", _seconds),
    "wait": ("patience", _positive),
}
"""By the option: the field, and what reads its value. Fields that are tuples may be given more than once."""
OPTIONS: Final = tuple(_READERS)
