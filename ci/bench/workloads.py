"""What is built: each workload writes a build context and says for which platforms, how often and from which base."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TWO = ("linux/amd64", "linux/arm64")
EIGHT = (
    "linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/386", "linux/riscv64", "linux/ppc64le",
    "linux/s390x",
)  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """``write`` makes the context in a directory, ``scale`` (1.0: all of it) times its full size.

    In the Dockerfile, ``{registry}`` is where the bases are and ``{amount}`` how much its steps make, ``scale`` times
    the workload's own. With ``warm``, the build is measured again with nothing changed; with ``edited``, a file of the
    context, also with a line added to that; ``cold`` says whether the first one is worth a row of its own. What is not
    ``usual`` is built only when it is asked for by name, and by others only when they are. ``beside`` names the
    workload that this one is compared with.
    """

    name: str
    about: str
    platforms: tuple[str, ...]
    dockerfile: str
    write: Callable[[Path, float], None]
    warm: bool = False
    cold: bool = True
    usual: bool = True
    amount: int = 0
    beside: str = ""
    edited: str = ""

    def change(self, context: Path) -> None:
        """Add a line that was never there to the file that is edited."""
        with (context / self.edited).open("a") as file:
            file.write(f"# {time.time_ns()}\n")

    def make(self, folder: Path, registry: str, scale: float) -> Path:
        """Write the context below ``folder``."""
        context = folder / self.name
        context.mkdir(parents=True)
        self.write(context, scale)
        (context / "Dockerfile").write_text(
            self.dockerfile.format(registry=registry, amount=max(1, int(self.amount * scale)))
        )
        return context


def _nothing(_context: Path, _scale: float) -> None:
    """Dockerfiles that copy nothing."""


def _text(rng: random.Random, size: int) -> bytes:
    """About what source code is: gzip makes a fourth or a fifth of it."""
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz_", k=rng.randint(2, 9))) for _ in range(2000)]
    out = bytearray()
    while len(out) < size:
        out += b" ".join(rng.choices(words, k=12)) + b"\n"
    return bytes(out[:size])


class _Content:
    """Files' content, the same for the same seed: every third incompressible, the others like source code."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._text = _text(self._rng, 1 << 20)
        self._made = 0

    def __call__(self, size: int) -> bytes:
        self._made += 1
        if self._made % 3 == 0:
            return self._rng.randbytes(size)
        at = self._rng.randrange(len(self._text))
        whole = self._text[at:] + self._text * (size // len(self._text) + 1)
        return whole[:size]


def _tree(context: Path, files: int, size: int, each: int, seed: int) -> None:
    content = _Content(seed)
    for number in range(files):
        folder = context / "tree" / f"{number // each:03}"
        if number % each == 0:
            folder.mkdir(parents=True)
        (folder / f"{number:06}").write_bytes(content(size))


def _copy(context: Path, scale: float) -> None:
    """4,008 files, 167 MB: many small ones and nine large ones."""
    _tree(context, max(1, int(3999 * scale)), 18_000, 50, 1)
    content = _Content(2)
    for number in range(9):
        (context / "tree" / f"large-{number}").write_bytes(content(int(10_560_000 * scale)))


def _small(context: Path, scale: float) -> None:
    _tree(context, max(1, int(600 * scale)), 33_000, 50, 3)


def _many(context: Path, scale: float) -> None:
    _tree(context, max(1, int(200_000 * scale)), 40, 1000, 4)


def _gigabyte(context: Path, scale: float) -> None:
    _tree(context, max(1, int(8000 * scale)), 131_072, 100, 5)


def application(context: Path, scale: float) -> None:
    """Sources of a Python program, 400 files, 2 MB, and what it needs from PyPI."""
    content = _Content(6)
    for number in range(max(1, int(400 * scale))):
        folder = context / "src" / f"part{number // 20:02}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"module{number:03}.py").write_bytes(content(5000))
    (context / "src" / "app.py").write_text("import click\n\nclick.echo('built')\n")
    (context / "requirements.txt").write_text("click\nmarkupsafe\n")


def steps(count: int) -> str:
    return "FROM {registry}/base/busybox\n" + "".join(
        f"RUN echo {number} > /file-{number}\n" for number in range(count)
    )


_DAG = (
    "".join(
        f"FROM {{registry}}/base/busybox AS {name}\nRUN sleep 2 && echo {name} > /{name}\n" for name in ("a", "b", "c")
    )
    + "FROM {registry}/base/busybox\nCOPY --from=a /a /\nCOPY --from=b /b /\nCOPY --from=c /c /\n"
)
_LARGE = """\
FROM {registry}/base/busybox
RUN i=0; while [ $i -lt {amount} ]; do i=$((i + 1)); \\
      dd if=/dev/urandom bs=1M count=16 2>/dev/null; yes "line $i of a text that compresses" | head -c 50331648; \\
    done > /large
"""
_MANY = """\
FROM {registry}/base/busybox
RUN i=0; while [ $i -lt {amount} ]; do mkdir -p /many/$i; j=0; \\
      while [ $j -lt 1000 ]; do echo $i $j > /many/$i/$j; j=$((j + 1)); done; i=$((i + 1)); done
"""

PACKAGES = """\
FROM {registry}/base/debian
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \\
      openjdk-17-jre-headless nodejs gcc make git python3-pip python3-venv openssh-client && \
    apt-get clean && rm -rf /var/lib/apt/lists/* && test "$(dpkg-query -W | wc -l)" -gt 190
"""

_APPLICATION = """\
FROM {registry}/base/debian
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir --break-system-packages -r requirements.txt
COPY src src
CMD ["python3", "src/app.py"]
"""

WORKLOADS = (
    Workload("steps", "busybox, 30 tiny RUN steps", TWO, steps(30), _nothing, warm=True),
    Workload(
        "base",
        "Debian base (170 MB), RUN touch, RUN rm -rf /usr/share/doc",
        TWO,
        "FROM {registry}/base/debian\nRUN touch /touched\nRUN rm -rf /usr/share/doc\n",
        _nothing,
    ),
    Workload(
        "copy",
        "COPY of 4,008 files, 167 MB, a third incompressible; one RUN",
        TWO,
        "FROM {registry}/base/busybox\nCOPY tree /tree\nRUN ls /tree > /listing\n",
        _copy,
        warm=True,
    ),
    Workload("dag", "three stages that sleep 2 s, joined by COPY --from", TWO, _DAG, _nothing),
    Workload(
        "one",
        "COPY of 600 files, 20 MB, for one platform",
        TWO[:1],
        "FROM scratch\nCOPY tree /tree\n",
        _small,
        usual=False,
    ),
    Workload(
        "eight",
        "the same for eight platforms",
        EIGHT,
        "FROM scratch\nCOPY tree /tree\n",
        _small,
        usual=False,
        beside="one",
    ),
    Workload(
        "edit",
        "Debian base, apt-get and pip install, COPY of 400 sources, for one platform",
        TWO[:1],
        _APPLICATION,
        application,
        warm=True,
        cold=False,
        usual=False,
        edited="src/app.py",
    ),
    Workload(
        "packages",
        "Debian base, apt-get install of Java, Node, gcc, git and Python, more than 100 packages, for one platform",
        TWO[:1],
        PACKAGES,
        _nothing,
        usual=False,
    ),
    Workload("hundred", "busybox, 100 tiny RUN steps", TWO, steps(100), _nothing, warm=True, usual=False),
    Workload(
        "large",
        "one RUN that writes 5 GB into a file, a fourth of it incompressible",
        TWO[:1],
        _LARGE,
        _nothing,
        usual=False,
        amount=80,
    ),
    Workload("many", "one RUN that makes 200,000 files", TWO[:1], _MANY, _nothing, usual=False, amount=200),
    Workload("files", "COPY of 200,000 small files", TWO[:1], "FROM scratch\nCOPY tree /tree\n", _many, usual=False),
    Workload(
        "context",
        "a context of 8,000 files, 1 GB",
        TWO[:1],
        "FROM scratch\nCOPY tree /tree\n",
        _gigabyte,
        warm=True,
        cold=False,
        usual=False,
    ),
)
