"""Attack 26 (CVE-2025-0495 buildx, kaniko's README): a secret that one step was given is found by another one.

What a build tells about itself is attack 25's.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from conftest import Base, Kanifold

TOKEN = "hunted-token-77"
HUNT = (
    "(env; cat /proc/*/environ /proc/*/cmdline /proc/mounts; "
    "ls -laR /run /tmp /dev/shm /var /root; "
    "find / -xdev -type f -size -64k -not -path '/proc/*' -not -path '/sys/*' -exec cat {} +) 2>/dev/null "
    "| grep -ac hunted-token > /found; true"
)


@pytest.mark.parametrize("mount", ["type=secret,id=s", "type=secret,id=s,env=V", "type=secret,id=s,target=/deep/er/s"])
def test_a_later_step_hunts_in_vain(kanifold: Kanifold, busybox: Base, tmp_path: Path, mount: str) -> None:
    folder = kanifold.folder("context")
    cache = "--mount=type=cache,target=/cache"
    # The word that is hunted is put together, so that the hunter does not find itself.
    hunt = HUNT.replace("hunted-token", "hunted[-]token")
    (folder / "Dockerfile").write_text(
        f"FROM {busybox.ref}\nRUN {cache} --mount={mount} cat /run/secrets/s /deep/er/s >/dev/null 2>&1; "
        f'test -n "$V" -o -e /run/secrets/s -o -e /deep/er/s\nRUN {cache} {hunt}\n'
        'RUN cat /found; test "$(cat /found)" = 0\n'
    )
    kanifold("build", folder, "--secret", "id=s,env=GIVEN", GIVEN=TOKEN)


def test_a_step_beside_it_hunts_in_vain(kanifold: Kanifold, busybox: Base) -> None:
    """While the one that has the secret is running."""
    folder = kanifold.folder("context")
    hunt = HUNT.replace("hunted-token", "hunted[-]token")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (folder / "Dockerfile").write_text(
            f"FROM {busybox.ref} AS has\nRUN --mount=type=secret,id=s,env=V nc 127.0.0.1 {port}; touch /a\n"
            f"FROM {busybox.ref} AS hunts\nRUN nc 127.0.0.1 {port}\nRUN {hunt}\n"
            f'RUN nc 127.0.0.1 {port}; test "$(cat /found)" = 0\n'
            "FROM scratch\nCOPY --from=has /a /\nCOPY --from=hunts /found /\n"
        )
        build = kanifold.start(
            "build", folder, "--secret", "id=s,env=GIVEN", "--progress", "plain", GIVEN=TOKEN, KANIFOLD_NETWORK="host"
        )
        server.settimeout(60)
        # Both are running; the hunter, which is whoever closes and comes again, goes on while the other one waits.
        first, second = server.accept()[0], server.accept()[0]
        owner = _with_secret((first, second))
        hunter = second if owner is first else first
        hunter.close()
        server.accept()[0].close()
        owner.close()
        out, err = build.communicate(timeout=60)
    assert build.returncode == 0, out + err


def _with_secret(connections: tuple[socket.socket, socket.socket]) -> socket.socket:
    """The connection of the process whose environment holds the token."""
    for connection in connections:
        local, remote = connection.getsockname()[1], connection.getpeername()[1]
        inode = _inode(remote, local)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                held = any(f"socket:[{inode}]" == str(fd.readlink()) for fd in (process / "fd").iterdir())
                if held and TOKEN.encode() in (process / "environ").read_bytes():
                    return connection
            except OSError:
                continue
    raise AssertionError("no step has the secret")


def _inode(local: int, remote: int) -> str:
    ends = f"0100007F:{local:04X} 0100007F:{remote:04X}"
    return next(line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines() if ends in line)
