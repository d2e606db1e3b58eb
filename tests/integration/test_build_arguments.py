"""Build arguments that tell the builder something, across builds."""

from __future__ import annotations

from conftest import Base, Kanifold


def test_cache_mounts_of_two_namespaces_are_apart(kanifold: Kanifold, busybox: Base) -> None:
    context = kanifold.folder("context")
    (context / "Dockerfile").write_text(
        f"FROM {busybox.ref}\nARG WHO\nRUN --mount=type=cache,target=/c touch /c/$WHO; echo seen $(ls /c)\n"
    )

    def seen(who: str, *arguments: str) -> str:
        options = (
            "--build-arg",
            f"WHO={who}",
            *arguments,
            "--progress",
            "plain",
            "-o",
            f"type=oci,dest={kanifold.home}/{who}.tar",
        )
        return kanifold("build", context, *options).said

    apart = ("--build-arg", "BUILDKIT_CACHE_MOUNT_NS=apart")
    assert "seen one\n" in seen("one")
    assert "seen two\n" in seen("two", *apart)
    assert "seen three two\n" in seen("three", *apart)
