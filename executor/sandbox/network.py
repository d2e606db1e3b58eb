"""A network of a job's own for its steps, where one can be had without privilege, and what to do where it cannot.

The zygote makes one network namespace for all steps of its job, when the first of them is to come, and starts pasta
(passt.top) to connect it: a process in the host's network that takes packets from the namespace's only interface and
speaks TCP, UDP and ping for them through ordinary sockets. Each step joins the namespace by setns(2). The helper lives
in the zygote's process namespace, so it dies with the job, however that ends.

Services on the host's loopback interface are not reachable. pasta is told not to map them; but it connects to whatever
address a packet is for, and a step can have packets for 127.0.0.1 leave by the interface (SO_BINDTODEVICE). So what
pasta gets to read passes a filter, which is attached to its end of the interface before any step may join.

The helper acts as a user that owns nothing, in a user namespace of its own, where there is more than one id. It makes
its interface in a network namespace that belongs to that user namespace; but over this one a step that became the same
user would have all power. So the interface is moved to a namespace of the steps, over which they have what capabilities
they keep, and no more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import stat
import struct
from typing import Final, NoReturn

from executor.sandbox import interface, isolation
from platforms import syscalls
from platforms.descriptors import keep_only
from platforms.errors import EnvironmentUnfit

HELPER: Final = "pasta"
NO_HELPER: Final = f"there is no {HELPER}"
REMEDY: Final = (
    "install passt: apt-get install passt (Debian, Ubuntu), dnf install passt (Fedora), apk add passt (Alpine)"
)
SCOPES: Final = 6
"""The version of Landlock that keeps steps from abstract sockets and processes outside of themselves."""
INTERFACE: Final = "eth0"
_DEADLINE: Final = 20.0
"""Seconds that the helper has to come up."""
_UP: Final = b"up"
_PLACE: Final = "/tmp"
"""Covered, in the helper's own mount namespace, by a file system for its files. AppArmor's profile of pasta, which
Debian and Ubuntu bring, lets it write there."""
_TUN: Final = "/dev/net/tun"
_TUN_DEVICE: Final = os.makedev(10, 200)
_FORWARDED_DNS: Final = "169.254.1.1"
"""What a step asks for names where the host asks a server on its loopback interface: the helper hands that on."""
_RESOLV_CONF: Final = "/etc/resolv.conf"
_BEHIND_RESOLVED: Final = "/run/systemd/resolve/resolv.conf"
"""Where systemd-resolved, which listens on 127.0.0.53, lists the servers that it asks itself."""
_RANDOM_IDS: Final = 4096


class Network:
    """The network of a zygote's steps. ``begin`` may be called more than once, and before there are any steps."""

    def __init__(self) -> None:
        self._line: socket.socket | None = None
        self._ready = self._verdict = self._namespace = -1

    def begin(self) -> None:
        """Start the helper, unless it has been, and do not wait for it. What goes wrong is what ``join`` answers."""
        if self._verdict >= 0:
            return
        self._verdict = os.memfd_create("kanifold")
        self._ready, ready = os.pipe()
        program = isolation.find(HELPER)
        if not program:
            os.pwrite(self._verdict, NO_HELPER.encode(), 0)
            os.close(ready)
            return
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                if syscalls.fork(0) == 0:
                    _bring_up(program, theirs, ready, self._verdict)
            except OSError as error:
                os.pwrite(self._verdict, str(error).encode(), 0)
            finally:
                os.close(ready)

    def descriptors(self) -> tuple[int, ...]:
        """What a process has to keep open to ``join``; the namespace is made when this returns."""
        if self._line is not None:
            _, fds, _, _ = socket.recv_fds(self._line, 1, 1, socket.MSG_CMSG_CLOEXEC)
            self._namespace = fds[0] if fds else -1
            self._line.close()
            self._line = None
        return tuple(each for each in (self._ready, self._verdict, self._namespace) if each >= 0)

    def join(self) -> str:
        """Move this process into the network, once that is complete. Returns "", or why it stays where it is."""
        os.read(self._ready, 1)  # ends when the helper is up, or is known not to come
        said = os.pread(self._verdict, 1 << 10, 0)
        if said != _UP or self._namespace < 0:
            return said.decode("utf-8", "replace") or f"{HELPER} was killed"
        syscalls.setns(self._namespace, syscalls.CLONE_NEWNET)
        return ""


def remedy(why: str) -> str:
    """What helps when ``probe`` or ``join`` say ``why``."""
    if why == NO_HELPER:
        return REMEDY
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return f"as root: chmod 0666 {_TUN}; in a container: hand it the device"
    return "run pasta by hand to see what it lacks; an interface with a default route, perhaps"


def probe() -> str:
    """Try in a process of its own whether steps here can have a network of their own. Returns "", or why not."""
    if not isolation.find(HELPER):
        return NO_HELPER
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            isolation.enter()
            if (first := syscalls.fork(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID)) == 0:
                network = Network()
                network.begin()
                network.descriptors()
                os.write(write, network.join().encode())
            else:
                os.waitpid(first, 0)
        except (OSError, EnvironmentUnfit) as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8", errors="replace") as answer:
        why = answer.read()
    os.waitpid(child, 0)
    return why


def sniffs() -> bool:
    """Whether CAP_NET_RAW, as this process has it, counts in the network namespace that it is in."""
    for family, kind in ((17, socket.SOCK_RAW), (socket.AF_INET, socket.SOCK_RAW)):  # AF_PACKET
        with contextlib.suppress(OSError), socket.socket(family, kind, socket.IPPROTO_ICMP):
            return True
    return False


def switch_on_loopback() -> None:
    """Switch on ``lo``, the only interface of a new network namespace (netdevice(7))."""
    set_flags, up_and_running = 0x8914, 0x41
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh22x", b"lo", up_and_running))


def resolv_conf(isolated: bool) -> bytes:
    """The text of a step's /etc/resolv.conf: the host's, with servers that a step's own network can reach."""
    text = _contents(_RESOLV_CONF)
    servers = _servers(text)
    if not isolated or not any(map(_is_loopback, servers)):
        return text
    others = [line for line in text.splitlines() if not _is_loopback(_server(line))]
    if not all(map(_is_loopback, servers)):
        return b"\n".join([*others, b""])
    if behind := _behind_resolved():
        return behind
    return b"\n".join([f"nameserver {_FORWARDED_DNS}".encode(), *others, b""])


# -- the helper ------------------------------------------------------------------------------------------------------


def _bring_up(program: str, line: socket.socket, ready: int, verdict: int) -> NoReturn:
    """The life of the process that makes the steps' network: it ends when that is complete, or will not come."""
    said = b""
    try:
        keep_only(line.fileno(), ready, verdict)
        # Whoever we are going to be may not be able to look into the directory that it is in, a user's own perhaps.
        opened = os.open(program, os.O_PATH | os.O_CLOEXEC)
        _furnish()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if (helper := syscalls.fork(0)) == 0:
            ours.close()
            line.close()
            _be_helpers_parent(f"/proc/self/fd/{opened}", theirs)
        theirs.close()
        syscalls.unshare(syscalls.CLONE_NEWNET)
        switch_on_loopback()
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        socket.send_fds(line, [b"n"], [namespace])
        line.close()
        said, fds, _, _ = socket.recv_fds(ours, 1 << 10, 1, socket.MSG_CMSG_CLOEXEC)
        if fds:
            interface.move(INTERFACE, fds[0], namespace)
            said = _UP
        os.waitpid(helper, 0)
    except BaseException as error:
        said = str(error).encode()
    finally:
        os.pwrite(verdict, said, 0)
        os._exit(0)


def _be_helpers_parent(program: str, line: socket.socket) -> NoReturn:
    """Start the helper for a namespace in its power, and send that over ``line``, or why it is not there."""
    try:
        if isolation.id_limit() > 1:
            _become_nobody()
        namespace = _connect(program)
        if isinstance(namespace, str):
            line.send(namespace.encode())
        else:
            socket.send_fds(line, [_UP], [namespace])
    except BaseException as error:
        line.send(str(error).encode())
    finally:
        os._exit(0)


def _furnish() -> None:
    """A mount namespace with a place for files, and a /dev/net/tun that others than root may open."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("kanifold", _PLACE, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "mode=1777")
    with contextlib.suppress(OSError):
        if os.stat(_TUN).st_mode & 0o006 == 0o006:
            return
    with contextlib.suppress(OSError):  # then the helper will say that it cannot open it
        node = f"{_PLACE}/tun"
        os.mknod(node, stat.S_IFCHR, _TUN_DEVICE)
        os.chmod(node, 0o666)
        syscalls.mount(node, _TUN, flags=syscalls.MS_BIND)


def _become_nobody() -> None:
    """Act as a user and group that own nothing, and as root of a user namespace that has no other ids.

    Whoever owns a user namespace has all power over it, and steps can become any user that there is: nothing of theirs
    may belong to this one. The user is chosen by chance, so that the helpers of two builds have no power over each
    other.
    """
    highest = isolation.id_limit() - 1
    own = highest - int.from_bytes(os.urandom(4)) % min(_RANDOM_IDS, highest)
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(own, own, own)
    os.setresuid(own, own, own)
    syscalls.capset(1 << syscalls.CAP_SYS_ADMIN, 1 << syscalls.CAP_SYS_ADMIN, 0)
    syscalls.set_dumpable(True)
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    isolation.write_map("/proc/self/setgroups", "deny")
    isolation.write_map("/proc/self/uid_map", f"0 {own} 1")
    isolation.write_map("/proc/self/gid_map", f"0 {own} 1")


def _connect(program: str) -> int | str:
    """A descriptor of a new namespace with the interface of a helper that has been started; or why there is none."""
    told, tell = os.pipe()
    released, release = os.pipe()
    if syscalls.fork(0) == 0:
        try:
            os.close(release)
            syscalls.unshare(syscalls.CLONE_NEWNET)
            switch_on_loopback()
            syscalls.capset(0, 0, 0)  # whoever has fewer capabilities may not look at our namespaces
            os.write(tell, os.readlink("/proc/self").encode())  # our number in the /proc that everybody here sees
            os.close(tell)
            os.read(released, 1)
        except OSError as error:
            os.write(tell, f"cannot make a network namespace: {error}".encode())
        finally:
            os._exit(0)
    os.close(tell)
    holder = os.read(told, 1 << 10).decode()
    if not holder.isdigit():
        return holder
    try:
        namespace = f"/proc/{holder}/ns/net"
        return _start(program, namespace) or os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(release)


def _start(program: str, namespace: str) -> str:
    pid_file = f"{_PLACE}/{HELPER}.pid"
    options = (
        *("--quiet", "--config-net", "--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra"),
        *("-t", "none", "-u", "none", "-T", "none", "-U", "none"),
        *(("--dns-forward", _FORWARDED_DNS) if _forwards() else ()),
        *("-I", INTERFACE, "-P", pid_file),
        *("--no-netns-quit", "--netns", namespace),
    )
    complaints = os.memfd_create("kanifold")
    pid = os.posix_spawn(
        program,
        (HELPER, *options),
        {"PATH": "/usr/bin:/bin"},
        file_actions=[(os.POSIX_SPAWN_DUP2, complaints, 2)],
        setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),  # it refuses to begin with others
    )
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(_DEADLINE * 1000):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        return f"{HELPER} has not come up in {_DEADLINE:.0f} s"
    _, status = os.waitpid(pid, 0)
    if status:
        said = os.pread(complaints, 1 << 16, 0).decode("utf-8", "replace").splitlines()
        last = next((each.strip() for each in reversed(said) if each.strip() and "syslog" not in each), "")
        return f"{HELPER}: {last or f'ended with status {os.waitstatus_to_exitcode(status)}'}"
    helper = os.pidfd_open(int(_contents(pid_file)))
    try:
        _guard(helper)
    except BaseException:
        signal.pidfd_send_signal(helper, signal.SIGKILL)
        raise
    return ""


def _guard(helper: int) -> None:
    """Have the interface's end that process ``helper`` holds give it no packets for the host's own loopback."""
    for number in range(3, 1 << 10):
        try:
            fd = syscalls.pidfd_getfd(helper, number)
        except OSError as error:
            if isinstance(error, PermissionError):
                raise
            continue
        found = os.fstat(fd)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == _TUN_DEVICE:
            syscalls.filter_tap(fd, _FILTER)
            return
        os.close(fd)
    raise OSError(f"{HELPER} holds no interface")


def _filter() -> bytes:
    """A program of the classic packet filter (linux/filter.h) for Ethernet frames: which of them may leave.

    ARP; IPv4 to any address but 0.0.0.0/8 and 127.0.0.0/8; IPv6 to any but ::/64, where the loopback, the unspecified
    and the IPv4-mapped addresses are. Nothing else, tagged frames included.
    """
    load_half, load_word, load_byte, equal, end = 0x28, 0x20, 0x30, 0x15, 0x06
    keep, drop = 11, 12
    program: tuple[tuple[int, ...], ...] = (  # loads with an offset; comparisons with where to go on, and a number
        (load_half, 12),  # 0: the protocol
        (equal, keep, 2, 0x0806),
        (equal, 3, 6, 0x0800),
        (load_byte, 14 + 16),  # 3: of IPv4's destination
        (equal, drop, 5, 127),
        (equal, drop, keep, 0),
        (equal, 7, drop, 0x86DD),
        (load_word, 14 + 24),  # 7: of IPv6's destination
        (equal, 9, keep, 0),
        (load_word, 14 + 28),
        (equal, drop, keep, 0),
        (end, 0xFFFFFFFF),
        (end, 0),
    )
    code = b""
    for place, (operation, *rest) in enumerate(program):
        yes, no, value = (rest[0] - place - 1, rest[1] - place - 1, rest[2]) if operation == equal else (0, 0, rest[0])
        code += struct.pack("=HBBI", operation, yes, no, value)
    return code


_FILTER: Final = _filter()


# -- name servers ----------------------------------------------------------------------------------------------------


def _contents(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _behind_resolved() -> bytes:
    """The other resolv.conf that systemd-resolved keeps, if there is one with servers that steps can reach."""
    text = _contents(_BEHIND_RESOLVED)
    servers = _servers(text)
    return text if servers and not any(map(_is_loopback, servers)) else b""


def _forwards() -> bool:
    """Whether the helper has to ask a server on the loopback interface for steps.

    Only then may it be told to: it makes all answers of the host's first server appear to come from the address that
    it forwards, so whoever asks that server itself does not recognise them.
    """
    servers = _servers(_contents(_RESOLV_CONF))
    return bool(servers) and all(map(_is_loopback, servers)) and not _behind_resolved()


def _servers(text: bytes) -> list[bytes]:
    return [server for line in text.splitlines() if (server := _server(line))]


def _server(line: bytes) -> bytes:
    """The address in a ``nameserver`` line of resolv.conf(5); b"" for any other line."""
    words = line.split()
    return words[1] if len(words) > 1 and words[0] == b"nameserver" else b""


def _is_loopback(address: bytes) -> bool:
    return address.startswith(b"127.") or address == b"::1"
