"""Listing archives with other tar readers: GNU tar and Go's archive/tar."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

Listing = list[tuple[str, bytes, str]]
"""Kind (``file``, ``dir``, ``sym``, ``hard``, ``other``), path as written, and the digest of a file or target of a
link."""

_GO = """
package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
)

func list(path string) (found [][3]string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	reader := tar.NewReader(file)
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		kind, detail := "other", ""
		switch header.Typeflag {
		case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
			hash := sha256.New()
			if _, err := io.Copy(hash, reader); err != nil {
				return nil, err
			}
			kind, detail = "file", fmt.Sprintf("%x", hash.Sum(nil))
		case tar.TypeDir:
			kind = "dir"
		case tar.TypeSymlink:
			kind, detail = "sym", base64.StdEncoding.EncodeToString([]byte(header.Linkname))
		case tar.TypeLink:
			kind, detail = "hard", base64.StdEncoding.EncodeToString([]byte(header.Linkname))
		case tar.TypeXGlobalHeader:
			continue
		}
		found = append(found, [3]string{kind, base64.StdEncoding.EncodeToString([]byte(header.Name)), detail})
	}
}

func main() {
	for _, path := range os.Args[1:] {
		found, err := list(path)
		if err != nil {
			fmt.Println("null")
			continue
		}
		if found == nil {
			found = [][3]string{}
		}
		json.NewEncoder(os.Stdout).Encode(found)
	}
}
"""


def build_go(folder: Path) -> Path | None:
    """Build a program that lists archives with Go's archive/tar; None without Go."""
    if shutil.which("go") is None:
        return None
    (folder / "main.go").write_text(_GO)
    (folder / "go.mod").write_text("module oracle\n\ngo 1.21\n")
    environment = {**os.environ, "GOFLAGS": "", "GOTOOLCHAIN": "local", "GOPROXY": "off"}
    built = subprocess.run(["go", "build", "-o", "oracle", "."], cwd=folder, env=environment, check=False)
    return folder / "oracle" if built.returncode == 0 else None


def go(oracle: Path, archives: Sequence[Path]) -> list[Listing | None]:
    """What Go finds in each archive; None for those it refuses."""
    from base64 import b64decode

    ran = subprocess.run([oracle, *archives], check=True, capture_output=True, text=True)
    found: list[Listing | None] = []
    for line in ran.stdout.splitlines():
        said = json.loads(line)
        found.append(
            None
            if said is None
            else [
                (kind, b64decode(name), b64decode(detail).decode("latin-1") if kind in ("sym", "hard") else detail)
                for kind, name, detail in said
            ]
        )
    return found


def gnu(archive: Path, into: Path) -> dict[bytes, str] | None:
    """Return the tree that GNU tar extracts, as from ``tree``; None when it reports an error."""
    into.mkdir()
    command = ["tar", "--extract", "--file", archive, "--directory", into, "--no-same-owner", "--numeric-owner"]
    ran = subprocess.run(command, check=False, capture_output=True, env={**os.environ, "LC_ALL": "C"})
    return tree(into) if ran.returncode == 0 and not ran.stderr else None


def tree(top: Path) -> dict[bytes, str]:
    """Return what is below ``top``: path to the digest of a file, the text of a link, or another kind."""
    found: dict[bytes, str] = {}
    for path in top.rglob("*"):
        name = os.fsencode(path.relative_to(top))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "directory"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "other"
    return found
