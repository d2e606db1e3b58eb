"""Programs for several platforms side by side: what is a set by design, and what is still the wrong file."""

from __future__ import annotations

import pytest

from executor.rootfs.prebuilt import by_design

MODULE = "app/node_modules/@serialport/bindings-cpp/prebuilds"

SETS = {
    "directories": {
        f"{MODULE}/linux-x64/node.napi.glibc.node": "amd64",
        f"{MODULE}/linux-x64/node.napi.musl.node": "amd64",
        f"{MODULE}/linux-arm64/node.napi.armv8.node": "arm64",
        f"{MODULE}/linux-arm/node.napi.armv7.node": "arm",
        f"{MODULE}/android-arm64/node.napi.armv8.node": "arm64",
    },
    "files": {
        "app/node_modules/sqlite3/prebuilds/sqlite3-linux-arm64.node": "arm64",
        "app/node_modules/sqlite3/prebuilds/sqlite3-linux-x64.node": "amd64",
    },
    "triplets": {
        "opt/plugin/x86_64-unknown-linux-gnu/bin/plugin": "amd64",
        "opt/plugin/aarch64-unknown-linux-gnu/bin/plugin": "arm64",
        "opt/plugin/armv7-unknown-linux-gnueabihf/bin/plugin": "arm",
    },
}

ALONE = {
    "no sibling": {"app/prebuilds/linux-x64/x.node": "amd64"},
    "a sibling for neither": {"opt/tool-amd64": "amd64", "opt/tool-arm": "arm"},
    "another program": {"opt/tool-amd64": "amd64", "opt/other-arm64": "arm64"},
    "another directory": {"opt/a/tool-amd64": "amd64", "opt/b/tool-arm64": "arm64"},
    "names that lie": {"opt/tool-arm64": "amd64", "opt/tool-amd64": "arm64"},
    "names that say nothing": {"opt/bin/tool": "amd64", "opt/bin/other": "arm64"},
    "a system's libraries": {
        "usr/lib/x86_64-linux-gnu/libz.so.1": "amd64",
        "usr/lib/aarch64-linux-gnu/libz.so.1": "arm64",
    },
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_files_for_several_platforms_side_by_side_are_meant(name: str, architecture: str) -> None:
    assert by_design(SETS[name].items(), architecture) == SETS[name].keys()


@pytest.mark.parametrize("name", ALONE)
def test_a_foreign_file_that_is_of_no_set_stays_a_finding(name: str) -> None:
    assert by_design(ALONE[name].items(), "arm64") == frozenset()


def test_a_set_without_the_images_own_platform_is_none() -> None:
    assert by_design(SETS["files"].items(), "s390x") == frozenset()
