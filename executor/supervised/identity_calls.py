"""Answering the calls about the caller itself: credentials, working directory, signals to other processes."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from executor.supervised import permissions
from executor.supervised.file_view import AT_FDCWD, failure
from executor.supervised.processes import DOCKER_CAPABILITIES, Credentials, WorkingDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

    from executor.sandbox.listener import SystemCall
    from executor.supervised.processes import Process
    from executor.supervised.step_context import StepContext

_WORD: Final = 0xFFFFFFFF
_SHORT: Final = ("i386", "arm")
_GROUPS: Final = 65536
_UTSNAME: Final = 64
"""Bytes of the longest name of struct utsname."""
_VERSIONS: Final = {0x19980330: 1, 0x20071026: 2, 0x20080522: 2}
"""The versions of struct __user_cap_header_struct, and how many structures of data they have."""
Ids = tuple[int, int, int, int]


class IdentityCalls:
    """Handlers of the calls about the caller."""

    def __init__(self, step: StepContext) -> None:
        self.step = step
        self.listener = step.listener
        self.view = step.view
        self.handlers: dict[str, Callable[[SystemCall, Process], int | None]] = {
            "getcwd": self._getcwd, "chdir": self._chdir, "fchdir": self._chdir, "umask": self._umask,
            "getgroups": self._getgroups, "setgroups": self._setgroups, "capget": self._capget, "capset": _succeed,
            "setuid": self._set_one, "setgid": self._set_one, "setreuid": self._set_two, "setregid": self._set_two,
            "setresuid": self._set_three, "setresgid": self._set_three,
            "setfsuid": self._set_for_files, "setfsgid": self._set_for_files,
            "getuid": _getuid, "geteuid": _geteuid, "getgid": _getgid, "getegid": _getegid,
            "getresuid": self._get_three, "getresgid": self._get_three,
            "kill": self._kill, "tkill": self._signal, "tgkill": self._signal, "rt_sigqueueinfo": self._signal,
            "rt_tgsigqueueinfo": self._signal, "pidfd_open": self._signal, "prlimit64": self._signal,
            "sched_setparam": self._signal, "sched_setscheduler": self._signal, "sched_setaffinity": self._signal,
            "sched_setattr": self._signal, "uname": self._uname,
        }  # fmt: skip
        self.handlers |= {
            f"{name}32": handler for name, handler in self.handlers.items() if "id" in name or "groups" in name
        }

    # -- the working directory and the mask ----------------------------------------------------------------------------

    def _getcwd(self, call: SystemCall, process: Process) -> int:
        buffer, size = call.arguments[:2]
        path = self.view.path_of(process.fs.cwd.fd)
        if path is None:
            raise failure(errno.ENOENT)
        if len(path) >= size:
            raise failure(errno.ERANGE)
        self.listener.write(call, buffer, path + b"\0")
        return len(path) + 1

    def _chdir(self, call: SystemCall, process: Process) -> int:
        if call.name == "fchdir":
            fd = self.view.descriptor(process, call.arguments[0])
            readonly = False
            if (mount := self.view.mount_of(fd)) is not None:
                readonly = mount.readonly
            elif self.view.path_of(fd) is None and os.fstat(fd).st_nlink:
                os.close(fd)
                raise failure(errno.EACCES)
        else:
            path = self.listener.string(call, call.arguments[0])
            found = self.view.open(process, AT_FDCWD, path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            fd, readonly = found.fd, found.readonly
        directory = WorkingDirectory(fd, readonly=readonly)
        status = os.fstat(fd)
        if not stat.S_ISDIR(status.st_mode):
            raise failure(errno.ENOTDIR)
        if not process.credentials.overrides:
            permissions.check(process.credentials, self.step.table.told(status), permissions.EXECUTE)
        process.fs.cwd = directory
        return 0

    def _umask(self, call: SystemCall, process: Process) -> int:
        old, process.fs.umask = process.fs.umask, call.arguments[0] & 0o777
        return old

    # -- ids -----------------------------------------------------------------------------------------------------------

    def _set_one(self, call: SystemCall, process: Process) -> int:
        wanted = _id(call, 0)
        old = _ids(call, process.credentials)
        if wanted < 0:
            raise failure(errno.EINVAL)
        if process.credentials.privileged:
            return _set(call, process, (wanted,) * 4)
        if wanted not in (old[0], old[2]):
            raise failure(errno.EPERM)
        return _set(call, process, (old[0], wanted, old[2], wanted))

    def _set_two(self, call: SystemCall, process: Process) -> int:
        real, effective = _id(call, 0), _id(call, 1)
        old = _ids(call, process.credentials)
        if not process.credentials.privileged and (
            real not in (-1, old[0], old[1]) or effective not in (-1, old[0], old[1], old[2])
        ):
            raise failure(errno.EPERM)
        new_real = old[0] if real < 0 else real
        new_effective = old[1] if effective < 0 else effective
        saved = new_effective if real >= 0 or (effective >= 0 and effective != old[0]) else old[2]
        return _set(call, process, (new_real, new_effective, saved, new_effective))

    def _set_three(self, call: SystemCall, process: Process) -> int:
        wanted = tuple(_id(call, index) for index in range(3))
        old = _ids(call, process.credentials)
        if not process.credentials.privileged and any(each not in (-1, *old[:3]) for each in wanted):
            raise failure(errno.EPERM)
        real, effective, saved = (was if each < 0 else each for each, was in zip(wanted, old, strict=False))
        return _set(call, process, (real, effective, saved, effective))

    def _set_for_files(self, call: SystemCall, process: Process) -> int:
        wanted, old = _id(call, 0), _ids(call, process.credentials)
        if wanted >= 0 and (process.credentials.privileged or wanted in old):
            _set(call, process, (*old[:3], wanted))
        return old[3]

    def _get_three(self, call: SystemCall, process: Process) -> int:
        short = call.architecture in _SHORT and not call.name.endswith("32")
        for address, value in zip(call.arguments[:3], _ids(call, process.credentials), strict=False):
            self.listener.write(
                call, address, struct.pack("=H" if short else "=I", value & (0xFFFF if short else _WORD))
            )
        return 0

    def _getgroups(self, call: SystemCall, process: Process) -> int:
        size, buffer = call.arguments[:2]
        groups = process.credentials.groups
        short = call.architecture in _SHORT and not call.name.endswith("32")
        if size & _WORD:
            if len(groups) > size & _WORD:
                raise failure(errno.EINVAL)
            if groups:
                self.listener.write(call, buffer, struct.pack(f"={len(groups)}{'H' if short else 'I'}", *groups))
        return len(groups)

    def _setgroups(self, call: SystemCall, process: Process) -> int:
        count, buffer = call.arguments[0] & _WORD, call.arguments[1]
        if not process.credentials.privileged:
            raise failure(errno.EPERM)
        if count > _GROUPS:
            raise failure(errno.EINVAL)
        word = struct.Struct("=H" if call.architecture in _SHORT and not call.name.endswith("32") else "=I")
        data = self.listener.read(call, buffer, count * word.size) if count else b""
        groups = sorted(each for (each,) in word.iter_unpack(data))  # as the kernel has them
        process.credentials = replace(process.credentials, groups=tuple(groups))
        return 0

    def _capget(self, call: SystemCall, process: Process) -> int:
        header, data = call.arguments[:2]
        version, pid = struct.unpack("=Ii", self.listener.read(call, header, 8))
        if version not in _VERSIONS:
            self.listener.write(call, header, struct.pack("=I", 0x20080522))
            if data:
                raise failure(errno.EINVAL)
            return 0
        if not data:
            return 0
        of = self.step.processes.threads.get(pid, process) if pid else process
        held = DOCKER_CAPABILITIES if of.credentials.privileged else 0
        self.listener.write(call, data, struct.pack("=6I", held, held, 0, 0, 0, 0)[: 12 * _VERSIONS[version]])
        return 0

    def _uname(self, call: SystemCall, process: Process) -> int:
        del process
        found = os.uname()
        names = (found.sysname, self.step.hostname, found.release, found.version, found.machine, "(none)")
        fields = (os.fsencode(each)[:_UTSNAME].ljust(_UTSNAME + 1, b"\0") for each in names)
        self.listener.write(call, call.arguments[0], b"".join(fields))
        return 0

    # -- other processes -----------------------------------------------------------------------------------------------

    def _kill(self, call: SystemCall, process: Process) -> int | None:
        pid, number = (each & _WORD for each in call.arguments[:2])
        pid = pid - (1 << 32) if pid >> 31 else pid
        if pid == -1:
            for each in self.step.processes.leaders():
                if each not in (process.leader, self.step.processes.first):
                    os.kill(each, number)
            return 0
        leaders = self.step.processes.leaders()
        if pid < -1 and not any(_group(each) == -pid for each in leaders):
            raise failure(errno.ESRCH)
        if pid > 0 and pid not in self.step.processes.threads:
            raise failure(errno.ESRCH)
        self.listener.proceed(call)  # nothing of it is in memory
        return None

    def _signal(self, call: SystemCall, process: Process) -> int | None:
        del process
        if call.arguments[0] & _WORD not in self.step.processes.threads:
            raise failure(errno.ESRCH)
        if call.name.startswith(("tg", "rt_tg")) and call.arguments[1] & _WORD not in self.step.processes.threads:
            raise failure(errno.ESRCH)
        self.listener.proceed(call)  # which process it is about is not in memory
        return None


def _succeed(call: SystemCall, process: Process) -> int:
    del call, process
    return 0


def _getuid(call: SystemCall, process: Process) -> int:
    del call
    return process.credentials.uids[0]


def _geteuid(call: SystemCall, process: Process) -> int:
    del call
    return process.credentials.uids[1]


def _getgid(call: SystemCall, process: Process) -> int:
    del call
    return process.credentials.gids[0]


def _getegid(call: SystemCall, process: Process) -> int:
    del call
    return process.credentials.gids[1]


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def _id(call: SystemCall, index: int) -> int:
    bits = 16 if call.architecture in _SHORT and not call.name.endswith("32") else 32
    value = call.arguments[index] & ((1 << bits) - 1)
    return -1 if value == (1 << bits) - 1 else value


def _ids(call: SystemCall, credentials: Credentials) -> Ids:
    return credentials.uids if "uid" in call.name else credentials.gids


def _set(call: SystemCall, process: Process, ids: Ids) -> int:
    if "uid" in call.name:
        process.credentials = replace(process.credentials, uids=ids)
    else:
        process.credentials = replace(process.credentials, gids=ids)
    return 0
