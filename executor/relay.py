"""What the container of a Kubernetes node runs: it starts an executor and keeps its pipes while connections change.

Not imported by the orchestrator, but sent as text in the Pod's command: standard library only. It is process 1 of the
container. It listens on a Unix socket; each connection is made by a small program (``BRIDGE``) that the orchestrator
starts in the container by exec, and whose stdin and stdout are the stream of that exec. A connection that is cut is
followed by another one, on which both ends go on where they were: bytes have offsets, and are kept until the other end
has acknowledged them.

Frames, both ways: a kind (one byte), an offset (8 bytes), the size of what follows (4 bytes), as ``HEADER``.

    H  the first frame. To here ``SESSION RECEIVED``, the second the offset up to which all has arrived; back
       ``RECEIVED`` likewise. Another session than the one that is served begins anew, with another executor
    B  (from here) another orchestrator is connected: the connection is closed
    D  bytes of stdin or stdout at the offset
    A  all up to the offset has arrived; also a sign of life
    E  end of stdin or stdout at the offset
    X  JSON (from here): the executor has ended: ``status``, ``oom``, ``stderr``; acknowledged by A with one more than
       the offset of the end

It ends with its executor; when it is told to (SIGTERM); and by itself when no orchestrator has been heard for a minute.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

HEADER: Final = struct.Struct(">cQI")
PLACE: Final = "/tmp/kanifold-relay"
"""The directory of the socket; ``KANIFOLD_RELAY`` names another one."""
SOCKET: Final = "socket"
WINDOW: Final = 4 << 20
"""Bytes that are kept for the orchestrator, or for the executor, at most: then nothing more is read."""
BLOCK: Final = 1 << 16
FRAME_LIMIT: Final = 1 << 20
SILENCE: Final = 60.0
"""Seconds without an orchestrator after which all ends."""
ALIVE: Final = 20.0
"""Seconds since an orchestrator was heard in which another one is sent away."""
GRACE: Final = 1.5
"""Seconds that an executor has to end before it is killed."""
TAIL: Final = 16 << 10
"""Bytes of stderr that are kept."""
CHILD: Final = "import signal,sys;signal.alarm(60);line=sys.stdin.buffer.raw.readline;python=line();exec(line())"
"""What the executor's Python runs first: the second line of stdin; the first is the name of a Python."""
BRIDGE: Final = """\
import os,select,socket,sys,time
s=socket.socket(socket.AF_UNIX)
end=time.time()+20
while 1:
    try:
        s.connect(sys.argv[1]);break
    except OSError:
        if time.time()>end:raise
        time.sleep(.05)
f=s.fileno()
p=select.poll()
p.register(0,1);p.register(f,1)
while 1:
    for x,e in p.poll():
        b=os.read(x,1<<16)
        if not b:sys.exit()
        if x:
            while b:b=b[os.write(1,b):]
        else:s.sendall(b)
"""
"""Copies between its stdin and stdout and the socket that it is given."""


class BrokenFrameError(Exception):
    """A connection whose bytes are no frames."""


class RelayedExecutor:
    """A running executor, and what is kept of its streams."""

    def __init__(self, session: str, command: list[str]) -> None:
        stdin, stdout, stderr = os.pipe(), os.pipe(), os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, fd, place) for place, fd in enumerate((stdin[0], stdout[1], stderr[1]))]
        self.session = session
        self.oom_kills = oom_kills()
        self.pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions, setsid=True)
        for fd in (stdin[0], stdout[1], stderr[1]):
            os.close(fd)
        self.stdin, self.stdout, self.stderr = stdin[1], stdout[0], stderr[0]
        """Descriptors; -1 once they are closed."""
        for fd in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(fd, False)
        self.received = 0
        """Offset in stdin up to which all has arrived here."""
        self.pending = bytearray()
        """What it has not read yet."""
        self.stdin_ends = False
        self.kept = bytearray()
        """Bytes of stdout that the orchestrator has not acknowledged."""
        self.base = 0
        """The offset of the first of them."""
        self.status: int | None = None
        self.tail = b""
        self.told = False
        """Whether the orchestrator has acknowledged its end."""

    @property
    def end(self) -> int:
        """Return the offset after the last byte of stdout so far."""
        return self.base + len(self.kept)

    def kill(self) -> None:
        """Kill it and its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self, name: str) -> None:
        """Close the descriptor ``name``, unless that was done."""
        fd = getattr(self, name)
        if fd >= 0:
            os.close(fd)
            setattr(self, name, -1)


class Link:
    """A connection, after or before its first frame."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.sent = -1
        """Offset of stdout up to which it was given to this connection; -1 before the first frame."""
        self.end_sent = self.exit_sent = False
        self.heard = time.monotonic()

    def send(self, kind: bytes, offset: int = 0, content: bytes = b"") -> None:
        """Have a frame sent."""
        self.outgoing += HEADER.pack(kind, offset, len(content)) + content

    def is_open(self) -> bool:
        """Whether the other end has not closed it."""
        try:
            return bool(self.connection.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def frames(self) -> list[tuple[bytes, int, bytes]]:
        """Return the frames that are complete. Raises ``BrokenFrameError``."""
        found = []
        while len(self.incoming) >= HEADER.size:
            kind, offset, size = HEADER.unpack_from(self.incoming)
            if size > FRAME_LIMIT:
                raise BrokenFrameError
            if len(self.incoming) < HEADER.size + size:
                break
            found.append((kind, offset, bytes(self.incoming[HEADER.size : HEADER.size + size])))
            del self.incoming[: HEADER.size + size]
        return found


class Relay:
    """The connections on ``listener``, and the executor, which ``command`` starts."""

    def __init__(self, listener: socket.socket, command: list[str], silence: float = SILENCE) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._command = command
        self._silence = silence
        self._waiting: list[Link] = []
        """Connections without a first frame."""
        self._link: Link | None = None
        self._executor: RelayedExecutor | None = None
        self._heard = time.monotonic()
        self._stopping = 0.0
        """When it was told to end; 0 if it was not."""
        self._wake, wakes = socket.socketpair()
        self._wake.setblocking(False)
        wakes.setblocking(False)
        self._wakes = wakes
        """Kept open: signals are written to it."""
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)

    def run(self) -> int:
        """Serve until the end; return the exit status: the executor's, or 1."""
        while True:
            self._wait()
            self._reap()
            found, now = self._executor, time.monotonic()
            if found is not None and found.status is not None and found.told:
                return found.status if 0 <= found.status < 256 else 1
            if now - self._heard > self._silence:
                _say("no orchestrator is connected any more")
                return self._ended()
            if self._stopping and (found is None or found.status is not None or now - self._stopping > GRACE):
                return self._ended()

    def _ended(self) -> int:
        if self._executor is not None:
            self._executor.kill()
        return 1

    def _stop(self, *_: object) -> None:
        self._stopping = self._stopping or time.monotonic()
        if self._executor is not None:
            self._executor.stdin_ends = True

    def _reap(self) -> None:
        """Take the exit statuses of all children: orphans become those of process 1."""
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                if self._executor is not None and pid == self._executor.pid:
                    self._executor.status = os.waitstatus_to_exitcode(status)
                    self._executor.close("stdin")
                    _say(f"the executor has ended with status {self._executor.status}")

    # -- waiting ------------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Wait for something to do, a second at most, and do it."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ, self._accept)
            selector.register(self._wake, selectors.EVENT_READ, self._woken)
            for each in self._waiting:
                selector.register(each.connection, selectors.EVENT_READ, each)
            self._register_executor(selector)
            self._register_link(selector)
            for key, mask in selector.select(1.0):
                if isinstance(key.data, Link):
                    self._serve(key.data, mask)
                else:
                    key.data()

    def _register_executor(self, selector: selectors.BaseSelector) -> None:
        found = self._executor
        if found is None:
            return
        if found.stdin_ends and not found.pending:
            found.close("stdin")
        if found.stdin >= 0 and found.pending:
            selector.register(found.stdin, selectors.EVENT_WRITE, self._feed)
        if found.stdout >= 0 and len(found.kept) < WINDOW:
            selector.register(found.stdout, selectors.EVENT_READ, self._take)
        if found.stderr >= 0:
            selector.register(found.stderr, selectors.EVENT_READ, self._take_stderr)

    def _register_link(self, selector: selectors.BaseSelector) -> None:
        link, found = self._link, self._executor
        if link is None or found is None:
            return
        if not self._stopping:  # what an executor says of its end then would hide that of its Pod
            self._fill(link, found)
        wanted = selectors.EVENT_READ if len(found.pending) < WINDOW else 0
        wanted |= selectors.EVENT_WRITE if link.outgoing else 0
        if wanted:
            selector.register(link.connection, wanted, link)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)

    # -- the executor -------------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        found = self._executor
        assert found is not None
        try:
            count = os.write(found.stdin, found.pending[:BLOCK])
            del found.pending[:count]
        except BlockingIOError:
            pass
        except OSError:  # it reads nothing more
            found.pending.clear()
            found.close("stdin")

    def _take(self) -> None:
        found = self._executor
        assert found is not None
        with contextlib.suppress(BlockingIOError):
            block = os.read(found.stdout, BLOCK)
            found.kept += block
            if not block:
                found.close("stdout")

    def _take_stderr(self) -> None:
        found = self._executor
        assert found is not None
        with contextlib.suppress(BlockingIOError):
            block = os.read(found.stderr, BLOCK)
            found.tail = (found.tail + block)[-TAIL:]
            if not block:
                found.close("stderr")
            with contextlib.suppress(OSError):
                os.write(2, block)

    # -- connections --------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            self._waiting.append(Link(self._listener.accept()[0]))

    def _serve(self, link: Link, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                del link.outgoing[: link.connection.send(link.outgoing[:BLOCK])]
            if mask & selectors.EVENT_READ:
                block = link.connection.recv(BLOCK)
                if not block:
                    raise BrokenFrameError
                link.incoming += block
                link.heard = time.monotonic()
                for kind, offset, content in link.frames():
                    self._understand(link, kind, offset, content)
        except BlockingIOError:
            pass
        except (OSError, ValueError, BrokenFrameError):
            self._drop(link)

    def _drop(self, link: Link) -> None:
        link.connection.close()
        if link in self._waiting:
            self._waiting.remove(link)
        if link is self._link:
            self._link = None

    def _understand(self, link: Link, kind: bytes, offset: int, content: bytes) -> None:
        if kind == b"H":
            session, received = content.decode().split()
            self._begin(link, session, int(received))
            return
        found = self._executor
        if link is not self._link or found is None:
            raise BrokenFrameError
        self._heard = time.monotonic()
        if kind == b"D":
            if offset > found.received:
                raise BrokenFrameError
            new = content[found.received - offset :]
            found.received += len(new)
            if found.stdin >= 0:
                found.pending += new
            link.send(b"A", found.received)
        elif kind == b"A":
            if offset > found.end and found.status is not None:
                found.told = True
            count = max(0, min(offset, found.end) - found.base)
            del found.kept[:count]
            found.base += count
        elif kind == b"E":
            found.stdin_ends = True
        else:
            raise BrokenFrameError

    def _begin(self, link: Link, session: str, received: int) -> None:
        """Serve ``link``, if no other orchestrator is connected: what it has not received yet, or a new executor."""
        found, other, now = self._executor, self._link, time.monotonic()
        if found is not None and found.session != session:
            if other is not None and now - other.heard < ALIVE and other.is_open():
                link.connection.setblocking(True)
                link.connection.sendall(HEADER.pack(b"B", 0, 0))
                raise BrokenFrameError
            _say("another orchestrator takes over")
            found.kill()
            for each in ("stdin", "stdout", "stderr"):
                found.close(each)
            found = None
        if other is not None and other is not link:
            self._drop(other)
        if found is None:
            _say("an executor is started")
            found = self._executor = RelayedExecutor(session, self._command)
        if link in self._waiting:
            self._waiting.remove(link)
        self._link, self._heard = link, now
        link.sent = max(found.base, min(received, found.end))
        link.send(b"H", 0, str(found.received).encode())

    def _fill(self, link: Link, found: RelayedExecutor) -> None:
        """Have what ``link`` was not given yet sent on it."""
        while link.sent < found.end and len(link.outgoing) < WINDOW:
            begin = max(link.sent, found.base)
            block = bytes(found.kept[begin - found.base : begin - found.base + BLOCK])
            link.send(b"D", begin, block)
            link.sent = begin + len(block)
        if link.sent < found.end or found.stdout >= 0:
            return
        if not link.end_sent:
            link.end_sent = True
            link.send(b"E", found.end)
        if found.status is not None and found.stderr < 0 and not link.exit_sent:
            link.exit_sent = True
            oom = oom_kills() > found.oom_kills
            said = {"status": found.status, "oom": oom, "stderr": found.tail.decode(errors="replace")}
            link.send(b"X", found.end, json.dumps(said).encode())


def oom_kills() -> int:
    """Return how many processes of the container were killed for want of memory; 0 if that is unknown."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as lines:
            for line in lines:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def _ignore(*_: object) -> None:
    """Handle a signal: it only has to wake the process."""


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"kanifold: {text}\n".encode())


def main() -> int:
    """Serve on a socket in a directory that is this user's alone. Returns the exit status."""
    place = os.environ.get("KANIFOLD_RELAY", PLACE)
    os.makedirs(place, 0o700, exist_ok=True)
    path = f"{place}/{SOCKET}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX) as listener:
        mask = os.umask(0o177)
        listener.bind(path)
        os.umask(mask)
        listener.listen(8)
        _say("waiting for an orchestrator")
        return Relay(listener, [sys.executable, "-I", "-S", "-c", CHILD]).run()
