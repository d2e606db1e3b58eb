"""The Job of an executor, as data: batch/v1, with a Pod template that the user may patch."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from executor import __version__, relay
from executor.registry import auth
from orchestrator.nodes.kubernetes import strategic_merge
from orchestrator.nodes.kubernetes.address import KubernetesAddress, Toleration
from platforms.decoding import from_json
from platforms.errors import UsageError

CONTAINER: Final = "executor"
"""The name of the container with the executor."""
HOME: Final = "/var/lib/kanifold"
"""Where the volume of the store is mounted."""
_STORE_VOLUME: Final = "store"
_TEMPORARY_VOLUME: Final = "tmp"
_CREDENTIALS_VOLUME: Final = "registry-credentials"
_CREDENTIALS: Final = "/etc/kanifold/docker"
_USER: Final = 1000
"""The user and group of the profile ``restricted``: the ordinary user of kanifold's image."""
MANAGED_BY: Final = "kanifold"
SELECTOR: Final = f"app.kubernetes.io/managed-by={MANAGED_BY},app.kubernetes.io/component=executor"
"""Selects the Pods of executors."""
_GRACE_SECONDS: Final = 5
_QUEUED_SECONDS: Final = 43_200
"""How long a Job may wait for a quota or a node, beyond what its Pod may take: half a day."""
_POD_TEMPLATE_KEYS: Final = frozenset({"apiVersion", "kind", "metadata", "spec", "template"})


class JobManifest(msgspec.Struct, frozen=True):
    """A Job, ready to be created."""

    name: str
    body: dict[str, Any]


class Owner(msgspec.Struct, frozen=True):
    """The Pod with which Jobs are deleted."""

    name: str
    uid: str


class JobTemplate(msgspec.Struct, frozen=True):
    """What the Jobs of a build are made of. ``patch`` is a strategic merge patch of the Pod template.

    ``build`` is a text that the same build has when it is run again.
    """

    address: KubernetesAddress
    build: str
    patch: Mapping[str, Any]
    owner: Owner | None = None


def manifest(template: JobTemplate, architecture: str, number: int) -> JobManifest:
    """Return the Job of the executor ``number`` for ``architecture``.

    Its name depends on all that it is made of, so a Job of the same name is the same. Raises ``UsageError`` if the
    patch cannot be applied.
    """
    address, build, owner = template.address, template.build, template.owner
    try:
        pod = strategic_merge.merge(_template(address, architecture), dict(template.patch))
    except strategic_merge.MalformedPatchError as error:
        raise UsageError(f"cannot apply {address.template}", why=str(error)) from error
    spec = {
        "backoffLimit": 0,
        "completions": 1,
        "parallelism": 1,
        "activeDeadlineSeconds": address.deadline + _QUEUED_SECONDS,
        "ttlSecondsAfterFinished": address.ttl,
        "template": pod,
    }
    identity = hashlib.sha256(msgspec.json.encode([build, architecture, spec], order="sorted")).hexdigest()[:16]
    name = f"kanifold-{identity}-{architecture}-{number}"
    metadata: dict[str, Any] = {
        "name": name,
        "labels": {**_labels(), "app.kubernetes.io/instance": f"kanifold-{identity}"},
    }
    if owner is not None:
        metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", "name": owner.name, "uid": owner.uid}]
    return JobManifest(name, {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})


def own_pod() -> Owner | None:
    """Return the Pod that the orchestrator runs in, as far as its environment tells: ``POD_NAME`` and ``POD_UID``."""
    name, uid = os.environ.get("POD_NAME", ""), os.environ.get("POD_UID", "")
    return Owner(name, uid) if name and uid else None


def read_patch(path: str) -> Mapping[str, Any]:
    """Return the patch in the YAML file ``path``: of a Pod template, or a document with ``template`` in it.

    Raises ``UsageError``.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            # Through JSON, which has the values that the API has: a date is a text, and keys are.
            found = from_json(msgspec.json.encode(yaml.safe_load(file), order="sorted"))
    except RecursionError as error:
        raise UsageError(f"cannot read the Pod template {path}", why="it is nested too deeply") from error
    except (OSError, TypeError, ValueError, yaml.YAMLError, msgspec.MsgspecError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot read the Pod template {path}", why=why or "") from error
    if found is None:
        return {}
    inner = found.get("template", found) if isinstance(found, dict) else None
    if not isinstance(inner, dict) or not set(found) <= _POD_TEMPLATE_KEYS:
        raise UsageError(
            f"{path} is no patch of a Pod template",
            why="it has to have metadata and spec, as template of a Job has",
            remedy="spec: {nodeSelector: {pool: builds}}, for example",
        )
    return {key: value for key, value in inner.items() if key in ("metadata", "spec")}


def _labels() -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "kanifold",
        "app.kubernetes.io/component": "executor",
        "app.kubernetes.io/managed-by": MANAGED_BY,
        "app.kubernetes.io/version": "".join(each if each.isalnum() or each in "._-" else "-" for each in __version__),
    }


def _template(address: KubernetesAddress, architecture: str) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": address.deadline,
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "enableServiceLinks": False,
        "automountServiceAccountToken": bool(address.service_account),
        "nodeSelector": {
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": architecture,
            **dict(address.node_selector),
        },
        "containers": [_container(address)],
        "volumes": _volumes(address, architecture),
    }
    if address.service_account:
        pod["serviceAccountName"] = address.service_account
    if address.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": each} for each in address.image_pull_secrets]
    if address.tolerations:
        pod["tolerations"] = [_toleration(each) for each in address.tolerations]
    pod |= _pod_security(address)
    return {"metadata": {"labels": _labels()}, "spec": pod}


def _container(address: KubernetesAddress) -> dict[str, Any]:
    environment = {"HOME": HOME, "TMPDIR": "/tmp", "KANIFOLD_ROOT": f"{HOME}/store"}
    mounts = [
        {"name": _STORE_VOLUME, "mountPath": HOME},
        {"name": _TEMPORARY_VOLUME, "mountPath": "/tmp"},
    ]
    if address.registry_secret:
        environment |= {"DOCKER_CONFIG": _CREDENTIALS, auth.OWN_CREDENTIALS: "1"}
        mounts.append({"name": _CREDENTIALS_VOLUME, "mountPath": _CREDENTIALS, "readOnly": True})  # type: ignore[dict-item]
    found: dict[str, Any] = {
        "name": CONTAINER,
        "image": address.image,
        "command": ["python3", "-I", "-S", "-c", relay_text()],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "volumeMounts": mounts,
        "securityContext": _container_security(address),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if address.image_pull_policy:
        found["imagePullPolicy"] = address.image_pull_policy
    wanted = {"cpu": address.cpu, "memory": address.memory}
    most = {"cpu": address.cpu_limit, "memory": address.memory_limit}
    resources = {
        key: kept
        for key, each in (("requests", wanted), ("limits", most))
        if (kept := {name: value for name, value in each.items() if value})
    }
    if resources:
        found["resources"] = resources
    return found


def relay_text() -> str:
    """Return the program of the container (``executor.relay``)."""
    with open(os.path.abspath(sys.modules[relay.__name__].__file__ or ""), encoding="utf-8") as file:
        return f"{file.read()}\nsys.exit(main())\n"


def _volumes(address: KubernetesAddress, architecture: str) -> list[dict[str, Any]]:
    store: dict[str, Any] = {"emptyDir": {"sizeLimit": address.store_size} if address.store_size else {}}
    if address.store:
        store = {"persistentVolumeClaim": {"claimName": address.store.replace("{arch}", architecture)}}
    found: list[dict[str, Any]] = [{"name": _STORE_VOLUME, **store}, {"name": _TEMPORARY_VOLUME, "emptyDir": {}}]
    if address.registry_secret:
        items = [{"key": ".dockerconfigjson", "path": "config.json"}]
        secret = {"secretName": address.registry_secret, "items": items}
        found.append({"name": _CREDENTIALS_VOLUME, "secret": secret})
    return found


def _toleration(toleration: Toleration) -> dict[str, str]:
    found = {"key": toleration.key, "operator": "Equal" if toleration.value else "Exists"}
    if toleration.value:
        found["value"] = toleration.value
    if toleration.effect:
        found["effect"] = toleration.effect
    return found


def _pod_security(address: KubernetesAddress) -> dict[str, Any]:
    match address.profile:
        case "restricted":
            return {
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": _USER,
                    "runAsGroup": _USER,
                    "fsGroup": _USER,
                    "fsGroupChangePolicy": "OnRootMismatch",
                    "seccompProfile": {"type": "RuntimeDefault"},
                }
            }
        case "userns":
            return {"hostUsers": False}
        case "unconfined":
            unconfined = {"type": "Unconfined"}
            return {"securityContext": {"seccompProfile": unconfined, "appArmorProfile": unconfined}}
        case _:
            return {}


def _container_security(address: KubernetesAddress) -> dict[str, Any]:
    match address.profile:
        case "restricted":
            return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        case "userns":
            return {"capabilities": {"add": ["SYS_ADMIN"]}}
        case _:
            return {}
