"""An image for Windows: a Dockerfile with its context, and what is in such an image, layer by layer.

    python tests/windows_image.py

records what BuildKit makes of it in ``e2e/windows_golden.json``. Needs root, and ``buildkitd`` and ``buildctl`` (on
PATH or in $KANIFOLD_JUDGES). Independent of kanifold's code.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import windows_base
from oci_layout import read_index, read_json

GOLDEN = Path(__file__).parent / "e2e" / "windows_golden.json"
PLATFORMS = (
    f"windows({windows_base.OLD})/amd64",
    f"windows({windows_base.NEW})/amd64",
    "windows/arm64",
)
EPOCH = "1700000000"
DOCKERFILE = r"""# escape=`
FROM base AS tools
COPY src\a.txt C:\tools\
FROM base
ENV PATH=C:\app;C:\Windows GREETING=hi
LABEL a=b
COPY src C:\app\
COPY --from=tools C:\tools\a.txt \Windows\from-tools.txt
COPY --from=tools ["C:\\Windows\\System32\\cmd2.exe", "c:/cmd copy.exe"]
WORKDIR C:\data\Sub
COPY src\dir\b.txt .
COPY --chown=12:34 --chmod=600 src/dir/b.txt \owned\
ADD archive.tar unpacked/
WORKDIR relative
COPY <<EOF here.txt
text $GREETING
EOF
USER ContainerUser
WORKDIR \users
EXPOSE 80
VOLUME C:\vol
CMD echo hi
SHELL ["powershell", "-Command"]
ENTRYPOINT start
HEALTHCHECK CMD echo ok
STOPSIGNAL SIGTERM
"""


def write_context(folder: Path) -> None:
    """Write the Dockerfile and its context to ``folder``, which is made."""
    (folder / "src" / "dir").mkdir(parents=True)
    (folder / "src" / "a.txt").write_text("hello\n")
    (folder / "src" / "hard").hardlink_to(folder / "src" / "a.txt")
    (folder / "src" / "dir" / "b.txt").write_text("b\n")
    with tarfile.open(folder / "archive.tar", "w") as archive:
        archive.add(folder / "src" / "dir", "dir")
    (folder / "Dockerfile").write_text(DOCKERFILE)


def picture(layout: Path) -> list[dict[str, Any]]:
    """Return what is in the images of ``layout``, without times."""
    found = []
    for descriptor in read_index(layout)["manifests"]:
        manifest = read_json(layout, descriptor["digest"])
        config = read_json(layout, manifest["config"]["digest"])
        history = [{key: each[key] for key in each if key != "created"} for each in config["history"]]
        whole = {key: config[key] for key in sorted(config) if key not in ("rootfs", "created", "history")}
        layers = [_layer(layout / "blobs" / "sha256" / each["digest"][7:]) for each in manifest["layers"]]
        found.append({"platform": descriptor["platform"], "config": whole, "history": history, "layers": layers})
    return found


def _layer(path: Path) -> list[list[Any]]:
    """Return the entries: name, type, mode, owner, size, target, and Windows' records."""
    entries: list[list[Any]] = []
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(path.read_bytes()))) as archive:
        for each in archive:
            records = each.pax_headers
            # Go writes nanoseconds without leading zeros after the point.
            assert records["LIBARCHIVE.creationtime"].partition(".")[0] == str(int(each.mtime))
            of_windows = {key: value for key, value in sorted(records.items()) if key.startswith("MSWINDOWS.")}
            owner = f"{each.uid}:{each.gid}"
            entries.append([
                each.name, each.type.decode(), oct(each.mode), owner, each.size, each.linkname, of_windows,
            ])  # fmt: skip
    return entries


def _record() -> None:
    sys.path.insert(0, str(Path(__file__).parent / "conformance"))
    import record

    with tempfile.TemporaryDirectory(prefix="windows.") as name:
        folder = Path(name)
        write_context(folder / "context")
        windows_base.write(folder / "base")
        base = json.loads((folder / "base" / "index.json").read_text())["manifests"][0]["digest"]
        with record.buildkit("127.0.0.1:1", folder) as address:
            command = [
                record._program("buildctl"), "--addr", address, "build", "--frontend", "dockerfile.v0",
                "--output", f"type=oci,tar=false,dest={folder / 'out'}", "--local", f"context={folder / 'context'}",
                "--local", f"dockerfile={folder / 'context'}", "--opt", f"platform={','.join(PLATFORMS)}",
                "--oci-layout", f"base={folder / 'base'}", "--opt", f"context:base=oci-layout://base@{base}",
                "--opt", f"build-arg:SOURCE_DATE_EPOCH={EPOCH}",
            ]  # fmt: skip
            subprocess.run(command, check=True, env=os.environ)
        GOLDEN.write_text(json.dumps(picture(folder / "out"), indent=1) + "\n")


if __name__ == "__main__":
    _record()
