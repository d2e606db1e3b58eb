"""Moving a network interface to another namespace with its addresses and routes (rtnetlink(7)).

The kernel drops both when it moves an interface, so they are read before and set again after.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

from platforms import syscalls

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, sender
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_LINK: Final = struct.Struct("=BxHiII")  # family, type, index, flags, mask of the flags to change
_ADDRESS: Final = struct.Struct("=BBBBI")  # family, length of the prefix, flags, scope, index
_ROUTE: Final = struct.Struct(
    "=8BI"
)  # family, destination's length, source's, tos, table, protocol, scope, type, flags
_ERROR: Final = struct.Struct("=i")
_WORD: Final = struct.Struct("=I")
_REQUEST, _ACKNOWLEDGE, _DUMP = 0x1, 0x4, 0x300
_REPLACE_OR_CREATE: Final = 0x500
_FAILED, _DONE = 2, 3
_SET_LINK, _NEW_ADDRESS, _GET_ADDRESS, _NEW_ROUTE, _GET_ROUTE = 19, 20, 22, 24, 26
_UP: Final = 1
_NAMESPACE, _BY_FAMILY, _HOW_LINK_LOCAL = 28, 26, 8
_NONE: Final = b"\1"
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_NO_DETECTION: Final = 0x02
_RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_CACHEINFO, _RTA_VIA = 4, 5, 9, 12, 18
_LATER: Final = {_RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA}
"""Attributes of routes by a gateway, which must be reachable already when they are set."""
_MAIN, _BY_KERNEL, _UNICAST, _ON_LINK = 254, 2, 1, 4
_BUFFER: Final = 1 << 16

_Message = tuple[bytes, dict[int, bytes]]
"""A fixed header, and attributes by type."""


def move(name: str, source: int, target: int) -> None:
    """Move the interface ``name`` from the network namespace ``source`` to ``target``, both descriptors, and bring it
    up.

    This process, which needs CAP_SYS_ADMIN and CAP_NET_ADMIN in both, is in ``target`` afterwards. Raises OSError.
    """
    syscalls.setns(source, syscalls.CLONE_NEWNET)
    with _connection() as line:
        index = socket.if_nametoindex(name)
        dumped = list(_dump(line, _GET_ADDRESS, _ADDRESS))
        addresses = [each for each in dumped if _ADDRESS.unpack(each[0])[4] == index]
        dumped = list(_dump(line, _GET_ROUTE, _ROUTE))
        routes = [each for each in dumped if _uses_interface(index, each[1])]
        _request(line, _SET_LINK, 0, _LINK.pack(0, 0, index, 0, 0), {_NAMESPACE: _WORD.pack(target)})
    syscalls.setns(target, syscalls.CLONE_NEWNET)
    with _connection() as line:
        index = socket.if_nametoindex(name)
        if any(head[0] == socket.AF_INET6 for head, _ in addresses):
            # The link-local address is among those that are set; generating one would take a second.
            how = _attribute(_BY_FAMILY, _attribute(socket.AF_INET6, _attribute(_HOW_LINK_LOCAL, _NONE)))
            _request(line, _SET_LINK, 0, _LINK.pack(0, 0, index, 0, 0) + how, {})
        _request(line, _SET_LINK, 0, _LINK.pack(0, 0, index, _UP, _UP), {})
        for each in addresses:
            _request(line, _NEW_ADDRESS, _REPLACE_OR_CREATE, *_address_request(each, index))
        chosen = [each for each in map(_route_request, routes) if each is not None]
        for head, attributes in sorted(chosen, key=lambda each: bool(_LATER & set(each[1]))):
            _request(line, _NEW_ROUTE, _REPLACE_OR_CREATE, head, attributes | {_RTA_OIF: _WORD.pack(index)})


def _uses_interface(index: int, attributes: dict[int, bytes]) -> bool:
    """Whether a route is through the interface ``index``, or through several gateways, which name it in turn."""
    return attributes.get(_RTA_OIF) == _WORD.pack(index) or _RTA_MULTIPATH in attributes


def _address_request(message: _Message, index: int) -> _Message:
    """Return the message that sets the address on the interface ``index``."""
    head, attributes = message
    family, prefix, _, scope, _ = _ADDRESS.unpack(head)
    kept = {each: attributes[each] for each in (_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST) if each in attributes}
    kept[_IFA_FLAGS] = _WORD.pack(_NO_DETECTION)  # and with a prefix route, as the kernel adds one
    return _ADDRESS.pack(family, prefix, _NO_DETECTION, scope, index), kept


def _route_request(message: _Message) -> _Message | None:
    """Return the message that sets the route; None for one that the kernel adds by itself."""
    head, attributes = message
    *parts, flags = _ROUTE.unpack(head)
    if (parts[4], parts[7]) != (_MAIN, _UNICAST) or parts[5] == _BY_KERNEL:
        return None
    kept = {each: value for each, value in attributes.items() if each != _RTA_CACHEINFO}
    return _ROUTE.pack(*parts, flags & _ON_LINK), kept


# -- messages --------------------------------------------------------------------------------------------------------


def _connection() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _send(line: socket.socket, kind: int, flags: int, body: bytes) -> None:
    line.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, 1, 0) + body)


def _request(line: socket.socket, kind: int, flags: int, head: bytes, attributes: dict[int, bytes]) -> None:
    """Send a request and wait for its acknowledgement. Raises OSError."""
    body = head + b"".join(_attribute(*each) for each in attributes.items())
    _send(line, kind, _ACKNOWLEDGE | flags, body)
    for _ in _responses(line):
        pass


def _dump(line: socket.socket, kind: int, head: struct.Struct) -> Iterator[_Message]:
    _send(line, kind, _DUMP, bytes(head.size))
    for body in _responses(line):
        yield body[: head.size], _attributes(body[head.size :])


def _responses(line: socket.socket) -> Iterator[bytes]:
    """Yield the bodies of the responses to a request. Raises OSError for an error."""
    while True:
        data = line.recv(_BUFFER)
        place = 0
        while place + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, place)
            body = data[place + _HEADER.size : place + length]
            place += length + -length % 4
            if kind in (_FAILED, _DONE):
                number = -_ERROR.unpack_from(body)[0] if len(body) >= _ERROR.size else 0
                if number:
                    raise OSError(number, os.strerror(number))
                return
            yield body
        if not data:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    place = 0
    while place + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, place)
        found[kind] = data[place + _ATTRIBUTE.size : place + length]
        place += max(length, _ATTRIBUTE.size)
        place += -place % 4
    return found
