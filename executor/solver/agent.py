"""``RUN --mount=type=ssh``: a socket that forwards to the user's SSH agent, wherever that runs.

A step's requests go over the protocol to the orchestrator, one at a time, so an executor on another node serves them as
well as a local one. Only the two requests that *use* keys pass (draft-ietf-sshm-ssh-agent: list identities, sign);
nothing can be added, removed or locked from within a step.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from executor import protocol
from executor.conversation import Conversation
from platforms.errors import KanifoldError

ALLOWED: Final = frozenset({11, 13})
"""SSH_AGENTC_REQUEST_IDENTITIES and SSH_AGENTC_SIGN_REQUEST."""
FAILURE: Final = b"\x05"
"""SSH_AGENT_FAILURE."""
_LIMIT: Final = 256 << 10
"""Bytes of a request (OpenSSH's own limit)."""
AT_ONCE: Final = 32
"""Connections of a step that are served; more wait. Each is a thread and a descriptor, and a question at a time."""


@contextmanager
def forwarded(conversation: Conversation, name: str, directory: str, *, uid: int, gid: int, mode: int) -> Iterator[str]:
    """Serve the agent ``name`` on a socket in ``directory`` while the block runs; yields the path of the socket.

    Where this process may not give it an owner, it stays its own: the step's supervisor tells of owners there.
    """
    path = os.path.join(directory, "agent")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        # A unix socket's path is at most 107 bytes; a store's may be longer.
        here = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            listener.bind(f"/proc/self/fd/{here}/agent")
        finally:
            os.close(here)
        try:
            os.chown(path, uid, gid)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
        os.chmod(path, mode)
        listener.listen()
        threading.Thread(target=_accept, args=(conversation, name, listener), name="ssh", daemon=True).start()
        try:
            yield path
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


def _accept(conversation: Conversation, name: str, listener: socket.socket) -> None:
    room = threading.Semaphore(AT_ONCE)
    while True:
        room.acquire()
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(conversation, name, connection, room), name="ssh", daemon=True).start()


def _serve(conversation: Conversation, name: str, connection: socket.socket, room: threading.Semaphore) -> None:
    """Answer the requests of one ``connection`` until it is closed, then release its slot in ``room``."""
    try:
        _answer_all(conversation, name, connection)
    finally:
        room.release()


def _answer_all(conversation: Conversation, name: str, connection: socket.socket) -> None:
    with suppress(OSError), connection, connection.makefile("rwb") as stream:
        while len(head := stream.read(4)) == 4:
            size = int.from_bytes(head, "big")
            if not 0 < size <= _LIMIT:
                return
            request = stream.read(size)
            answer = _answer(conversation, name, request)
            stream.write(len(answer).to_bytes(4, "big") + answer)
            stream.flush()


def _answer(conversation: Conversation, name: str, request: bytes) -> bytes:
    if request[:1] == b"" or request[0] not in ALLOWED:
        return FAILURE
    try:
        found = conversation.ask(protocol.AskAgent(name, request))
    except KanifoldError as error:
        conversation.send(protocol.BuildWarning(error.problem))  # the agent's protocol has no words for it
        return FAILURE
    return found or FAILURE
