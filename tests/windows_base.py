"""A base image for Windows, in the form of Microsoft's: layers with ``Files/``, ``Hives/`` and ``UtilityVM/``.

    python tests/windows_base.py DIR

writes the OCI layout DIR with two versions for amd64 and one for arm64. Independent of kanifold's code. Sources:
hcsshim (pkg/ociwclayer), go-winio (backuptar), OCI image-spec (config.md, image-index.md).
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from oci_layout import Image, Layer, pack, write_layout

OLD, NEW = "10.0.17763.6414", "10.0.20348.2700"
FEATURES = ["win32k"]
CONFIG = {"Cmd": ["c:\\windows\\system32\\cmd.exe"], "Env": ["BASE=C:\\base"], "WorkingDir": "C:\\work"}
_TIME = 1_600_000_000
_SECURITY = {"MSWINDOWS.rawsd": "AQAEgBQAAAAkAAAAAAAAAAAAAAABAgAAAAAABSAAAAAgAgAAAQIAAAAAAAUgAAAAIAIAAA=="}


def _archive(entries: list[tuple[str, str, str]]) -> bytes:
    """Return a layer; an entry is its name, its type and content: ``dir``, ``file TEXT``, ``link TARGET``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, text in entries:
            made = tarfile.TarInfo(name)
            made.mtime = _TIME
            attributes = {
                "MSWINDOWS.fileattr": "16" if kind == "dir" else "32",
                "LIBARCHIVE.creationtime": f"{_TIME}.5",
            }
            made.pax_headers = attributes | _SECURITY
            if kind == "dir":
                made.type, made.mode = tarfile.DIRTYPE, 0o040755
            elif kind == "link":
                made.type, made.linkname, made.mode = tarfile.LNKTYPE, text, 0o100644
            else:
                made.size, made.mode = len(text), 0o100644
            archive.addfile(made, io.BytesIO(text.encode()))
    return out.getvalue()


def layers(folder: Path, version: str) -> tuple[Layer, ...]:
    """Write the two layers of the base of ``version`` to ``folder``."""
    lower = [
        ("Files", "dir", ""),
        ("Files/Windows", "dir", ""),
        ("Files/Windows/System32", "dir", ""),
        ("Files/Windows/System32/cmd.exe", "file", f"cmd of {version}"),
        ("Files/Windows/System32/cmd2.exe", "link", "Files/Windows/System32/cmd.exe"),
        ("Files/Windows/old.dll", "file", "old"),
        ("Files/License.txt", "file", "license"),
        ("Hives", "dir", ""),
        ("Hives/SOFTWARE_Delta", "file", "hive"),
        ("UtilityVM", "dir", ""),
        ("UtilityVM/Files", "dir", ""),
        ("UtilityVM/Files/vm.exe", "file", "vm"),
    ]
    upper = [
        ("Files", "dir", ""),
        ("Files/Windows", "dir", ""),
        ("Files/Windows/.wh.old.dll", "file", ""),
        ("Files/Windows/new.dll", "file", "new"),
        ("Hives", "dir", ""),
    ]
    names = (f"lower-{version}", f"upper-{version}")
    return tuple(
        pack(io.BytesIO(_archive(entries)), folder / name) for name, entries in zip(names, (lower, upper), strict=True)
    )


def write(dest: Path, name: str = "windows") -> None:
    """Write the layout ``dest`` with the index ``name``."""
    images = []
    with tempfile.TemporaryDirectory() as scratch:
        for architecture, version in (("amd64", OLD), ("amd64", NEW), ("arm64", NEW)):
            platform: dict[str, Any] = {
                "os": "windows", "architecture": architecture, "os.version": version, "os.features": FEATURES
            }  # fmt: skip
            images.append(Image(platform, layers(Path(scratch), version), CONFIG))
        write_layout(dest, name, images)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
