"""Errors of nodes behind SSH, in the words of the ssh client."""

from __future__ import annotations

import re
from typing import Final

from orchestrator.nodes import executor_loading
from orchestrator.nodes.ssh_address import SSHAddress
from platforms.errors import EnvironmentUnfit

STATUS: Final = 255
"""The exit status of the client when it is itself what failed (ssh(1))."""
_CHANGED: Final = re.compile(r"HOST IDENTIFICATION HAS CHANGED|[Hh]ost key for .* has changed")
_UNKNOWN: Final = re.compile(r"Host key verification failed|No \S+ host key is known for")
_REFUSED: Final = re.compile(r"Permission denied|Too many authentication failures|No more authentication methods")
_UNFOUND: Final = re.compile(r"Could not resolve hostname")


def failure(node: str, address: SSHAddress, stderr: str, status: int) -> EnvironmentUnfit:
    """Return the error for a client that has ended with ``status`` before an executor was there."""
    lines = executor_loading.words(stderr)
    text = "\n".join(lines)
    login = f"ssh {'-p ' + str(address.port) + ' ' if address.port else ''}{_login(address)}"
    if _CHANGED.search(text):
        what, remedy = (
            f"node {node} has another host key than before",
            f"find out why. If the machine was set up anew: ssh-keygen -R {_known_as(address)}, then {login}",
        )
    elif _UNKNOWN.search(text):
        what, remedy = (
            f"the host key of node {node} is not known",
            f"compare its fingerprint with that of the machine and accept it: {login}",
        )
    elif _REFUSED.search(text):
        what, remedy = (
            f"node {node} refuses the login",
            f"see that `{login}` succeeds without a question: with a key in ~/.ssh, or in an agent (ssh-add)",
        )
    elif _UNFOUND.search(text):
        what, remedy = f"cannot find node {node}", "correct its address (kanifold node inspect), or ~/.ssh/config"
    else:
        what, remedy = f"cannot reach node {node}", f"see what `{login}` says"
    return EnvironmentUnfit(
        what, why=executor_loading.reason(lines, f"ssh ended with exit status {status}"), remedy=remedy
    )


def is_answerable(stderr: str) -> bool:
    """Whether the client, whose words are ``stderr``, could go on with an answer of the user."""
    return not _CHANGED.search(stderr) and bool(_UNKNOWN.search(stderr) or _REFUSED.search(stderr))


def _login(address: SSHAddress) -> str:
    return f"{address.user}@{address.host}" if address.user else address.host


def _known_as(address: SSHAddress) -> str:
    return f"'[{address.host}]:{address.port}'" if address.port else address.host
