"""An isolated network for the steps of a job, without privilege, by pasta (passt.top).

The zygote makes one network namespace for all steps of its job when the first of them is announced, and starts pasta to
connect it: a process in the host's network that reads packets from the namespace's only interface and forwards TCP, UDP
and ping through ordinary sockets. Each step joins the namespace by setns(2). pasta runs in the zygote's pid namespace,
so it ends with the job.

Services on the host's loopback interface are not reachable. pasta is configured not to map them; but it connects to any
destination address, and a step can send packets for 127.0.0.1 by the interface (SO_BINDTODEVICE). So a packet filter is
attached to pasta's end of the interface before a step may join.

Where there is more than one id, pasta runs as a user that owns nothing, in a user namespace of its own. Its interface
is made in a network namespace that belongs to that user namespace, in which a step that became the same user would have
all capabilities. So the interface is moved to another namespace, in which steps have only the capabilities that they
keep.
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
from platforms import syscalls, threads
from platforms.descriptors import keep_only, receive_fds
from platforms.errors import EnvironmentUnfit

HELPER: Final = "pasta"
NO_HELPER: Final = f"there is no {HELPER}"
NOT_PERMITTED: Final = "root here lacks CAP_NET_ADMIN"
REMEDY: Final = (
    "install passt: apt-get install passt (Debian, Ubuntu), dnf install passt (Fedora), apk add passt (Alpine)"
)
SCOPES: Final = 6
"""The Landlock ABI version that can keep steps from abstract sockets and processes outside of their domain."""
INTERFACE: Final = "eth0"
_DEADLINE: Final = 20.0
"""Seconds after which a pasta that is not ready is given up."""
_UP: Final = b"up"
_PLACE: Final = "/tmp"
"""The directory for pasta's files, on which a tmpfs is mounted in its own mount namespace. AppArmor's profile for pasta
in Debian and Ubuntu allows it to write there."""
_TUN: Final = "/dev/net/tun"
_TUN_DEVICE: Final = os.makedev(10, 200)
_FORWARDED_DNS: Final = "169.254.1.1"
"""The name server of a step where the host's is on its loopback interface: pasta forwards to that."""
_RESOLV_CONF: Final = "/etc/resolv.conf"
_BEHIND_RESOLVED: Final = "/run/systemd/resolve/resolv.conf"
"""Where systemd-resolved, which listens on 127.0.0.53, lists its upstream servers."""
_RANDOM_IDS: Final = 4096


class Network:
    """The network of a zygote's steps. ``begin`` is idempotent and may be called before there are any steps."""

    def __init__(self) -> None:
        self._line: socket.socket | None = None
        self._ready = self._verdict = self._namespace = -1

    def begin(self) -> None:
        """Start pasta, unless it was started, without waiting for it. ``join`` returns what went wrong."""
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
        """Return the descriptors that a process needs to ``join``; the namespace exists when this returns."""
        if self._line is not None:
            _, fds = receive_fds(self._line, 1, 1)
            self._namespace = fds[0] if fds else -1
            self._line.close()
            self._line = None
        return tuple(each for each in (self._ready, self._verdict, self._namespace) if each >= 0)

    def join(self) -> str:
        """Move this process into the network, waiting for it. Returns "", or why it was not moved."""
        os.read(self._ready, 1)  # until pasta is ready or has failed
        said = os.pread(self._verdict, 1 << 10, 0)
        if said != _UP or self._namespace < 0:
            return said.decode("utf-8", "replace") or f"{HELPER} was killed"
        syscalls.setns(self._namespace, syscalls.CLONE_NEWNET)
        return ""


def remedy(why: str) -> str:
    """Return the remedy for the reason ``why`` of ``probe`` or ``join``."""
    if why == NO_HELPER:
        return REMEDY
    if why == NOT_PERMITTED:
        return "give the container that capability; or build with --isolation mapped, in which it is not needed"
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return f"as root: chmod 0666 {_TUN}; in a container: hand it the device"
    return "run pasta by hand to see what it lacks; an interface with a default route, perhaps"


def probe() -> str:
    """Try, in a process of its own, whether steps can have an isolated network. Returns "", or why not."""
    if not isolation.find(HELPER):
        return NO_HELPER
    threads.check_single("try out whether build steps can have a network here")
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


def can_capture_packets() -> bool:
    """Whether this process's CAP_NET_RAW is effective in its network namespace."""
    for family, kind in ((17, socket.SOCK_RAW), (socket.AF_INET, socket.SOCK_RAW)):  # AF_PACKET
        with contextlib.suppress(OSError), socket.socket(family, kind, socket.IPPROTO_ICMP):
            return True
    return False


def bring_up_loopback() -> None:
    """Bring up ``lo``, the only interface of a new network namespace (netdevice(7)). Raises PermissionError without
    CAP_NET_ADMIN, with NOT_PERMITTED as its text."""
    set_flags, up_and_running = 0x8914, 0x41
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        try:
            fcntl.ioctl(any_socket, set_flags, struct.pack("16sh22x", b"lo", up_and_running))
        except PermissionError:
            raise PermissionError(NOT_PERMITTED) from None


def resolv_conf(isolated: bool) -> bytes:
    """Return /etc/resolv.conf for a step: the host's, with servers that are reachable from an isolated network."""
    text = _read(_RESOLV_CONF)
    servers = _servers(text)
    if not isolated or not any(map(_is_loopback, servers)):
        return text
    others = [line for line in text.splitlines() if not _is_loopback(_server(line))]
    if not all(map(_is_loopback, servers)):
        return b"\n".join([*others, b""])
    if behind := _upstream_resolv_conf():
        return behind
    return b"\n".join([f"nameserver {_FORWARDED_DNS}".encode(), *others, b""])


# -- the helper ------------------------------------------------------------------------------------------------------


def _bring_up(program: str, line: socket.socket, ready: int, verdict: int) -> NoReturn:
    """The main function of the process that makes the network: it ends when that is complete or has failed."""
    said = b""
    try:
        keep_only(line.fileno(), ready, verdict)
        # Opened first: the user that pasta runs as may have no access to its directory.
        opened = os.open(program, os.O_PATH | os.O_CLOEXEC)
        _set_up_mounts()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if (helper := syscalls.fork(0)) == 0:
            ours.close()
            line.close()
            _run_helper_parent(f"/proc/self/fd/{opened}", theirs)
        theirs.close()
        syscalls.unshare(syscalls.CLONE_NEWNET)
        bring_up_loopback()
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        socket.send_fds(line, [b"n"], [namespace])
        line.close()
        said, fds = receive_fds(ours, 1 << 10, 1)
        if fds:
            interface.move(INTERFACE, fds[0], namespace)
            said = _UP
        os.waitpid(helper, 0)
    except BaseException as error:
        said = str(error).encode()
    finally:
        os.pwrite(verdict, said, 0)
        os._exit(0)


def _run_helper_parent(program: str, line: socket.socket) -> NoReturn:
    """Start pasta for a namespace that it controls, and send that namespace, or why there is none, over ``line``."""
    try:
        if isolation.id_limit() > 1:
            _drop_privileges()
        namespace = _connect(program)
        if isinstance(namespace, str):
            line.send(namespace.encode())
        else:
            socket.send_fds(line, [_UP], [namespace])
    except BaseException as error:
        line.send(str(error).encode())
    finally:
        os._exit(0)


def _set_up_mounts() -> None:
    """Enter a mount namespace with a directory for files, and a /dev/net/tun that others than root may open."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("kanifold", _PLACE, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "mode=1777")
    with contextlib.suppress(OSError):
        if os.stat(_TUN).st_mode & 0o006 == 0o006:
            return
    with contextlib.suppress(OSError):  # pasta will report that it cannot open it
        node = f"{_PLACE}/tun"
        os.mknod(node, stat.S_IFCHR, _TUN_DEVICE)
        os.chmod(node, 0o666)
        syscalls.mount(node, _TUN, flags=syscalls.MS_BIND)


def _drop_privileges() -> None:
    """Become a user and group that own nothing, and root of a user namespace without other ids.

    The owner of a user namespace has all capabilities in it, and steps can become any user that exists, so nothing of
    theirs may belong to this one. The user is random, so that the helpers of two builds have no power over each other.
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
    """Return a descriptor of a new namespace with the interface of a pasta that was started; or why there is none."""
    told, tell = os.pipe()
    released, release = os.pipe()
    if syscalls.fork(0) == 0:
        try:
            os.close(release)
            syscalls.unshare(syscalls.CLONE_NEWNET)
            bring_up_loopback()
            syscalls.capset(0, 0, 0)  # pasta may inspect the namespaces only of processes without more capabilities
            os.write(tell, os.readlink("/proc/self").encode())  # the id in the mounted /proc
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
        *(("--dns-forward", _FORWARDED_DNS) if _needs_dns_forwarding() else ()),
        *("-I", INTERFACE, "-P", pid_file),
        *("--no-netns-quit", "--netns", namespace),
    )
    complaints = os.memfd_create("kanifold")
    pid = os.posix_spawn(
        program,
        (HELPER, *options),
        {"PATH": "/usr/bin:/bin"},
        file_actions=[(os.POSIX_SPAWN_DUP2, complaints, 2)],
        setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),  # pasta requires the defaults
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
    helper = os.pidfd_open(int(_read(pid_file)))
    try:
        _attach_filter(helper)
    except BaseException:
        signal.pidfd_send_signal(helper, signal.SIGKILL)
        raise
    return ""


def _attach_filter(helper: int) -> None:
    """Attach the packet filter to the end of the interface that process ``helper`` holds."""
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
    """Return a classic BPF program (linux/filter.h) for Ethernet frames that accepts what may leave.

    ARP; IPv4 to any address but 0.0.0.0/8 and 127.0.0.0/8; IPv6 to any but ::/64, which has the loopback, the
    unspecified and the IPv4-mapped addresses. Nothing else, nor tagged frames.
    """
    load_half, load_word, load_byte, equal, end = 0x28, 0x20, 0x30, 0x15, 0x06
    keep, drop = 11, 12
    program: tuple[tuple[int, ...], ...] = (  # loads: offset; comparisons: jump targets and a value
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


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _upstream_resolv_conf() -> bytes:
    """Return the resolv.conf with the upstream servers of systemd-resolved, if one of them is reachable from steps."""
    text = _read(_BEHIND_RESOLVED)
    servers = _servers(text)
    return text if servers and not any(map(_is_loopback, servers)) else b""


def _needs_dns_forwarding() -> bool:
    """Whether pasta has to forward DNS to a server on the loopback interface.

    It is not told to otherwise: replies of the host's first server would then appear to come from the forwarding
    address, and a program that queries that server directly would ignore them.
    """
    servers = _servers(_read(_RESOLV_CONF))
    return bool(servers) and all(map(_is_loopback, servers)) and not _upstream_resolv_conf()


def _servers(text: bytes) -> list[bytes]:
    return [server for line in text.splitlines() if (server := _server(line))]


def _server(line: bytes) -> bytes:
    """Return the address in a ``nameserver`` line of resolv.conf(5); b"" for any other line."""
    words = line.split()
    return words[1] if len(words) > 1 and words[0] == b"nameserver" else b""


def _is_loopback(address: bytes) -> bool:
    return address.startswith(b"127.") or address == b"::1"
