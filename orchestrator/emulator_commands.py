"""``kanifold emulators``, and what ``kanifold build --emulator-image`` needs: emulators out of images, in the store."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final

import click
from msgspec.structs import replace

from executor import emulator_image
from executor.emulator_image import EmulatorImage
from executor.image.manifest import Descriptor
from executor.registry import registry_settings
from executor.store import durability
from executor.store import emulators as kept_emulators
from executor.store.emulators import KeptEmulator
from executor.store.store import open_store
from orchestrator import options
from orchestrator.index import names
from orchestrator.index.command_context import open_context
from orchestrator.index.image_sources import DOCUMENT_TYPES, ImageSource, open_source
from orchestrator.index.names import ImageName, LayoutName
from orchestrator.request import BuildRequest
from orchestrator.view import events, open_display
from orchestrator.view.events import Emit
from orchestrator.view.stdout import print_json, print_line
from orchestrator.view.units import size as shown
from platforms import binfmt, host
from platforms.errors import EnvironmentUnfit, UsageError
from platforms.host import COMPAT
from platforms.parsing import parse

USUAL: Final = "docker.io/tonistiigi/binfmt"
"""The image that emulators are from when none is named: the one that buildx's documentation installs them with."""


def provide(request: BuildRequest, architectures: Iterable[str]) -> None:
    """Have the emulators of ``architectures`` out of the build's ``--emulator-image`` in its store.

    This host's own is left out. Raises ``KanifoldError``.
    """
    name = request.options.emulator_image
    digest = name.rpartition("@")[2]
    with open_store(request.options.root or None) as store:
        foreign = {*architectures} & {*binfmt.QEMU} - {host.host().architecture}
        missing = [each for each in sorted(foreign) if kept_emulators.find(store, digest, each) is None]
        if not missing:
            return
        mode = "quiet" if request.progress in ("quiet", "rawjson") else "plain"  # the build has a display of its own
        with open_display(mode) as display, open_context(request.options.registries, display) as context:
            image = _image(open_source(names.parse(name), context.client), name, context.emit)
            for each in missing:
                try:
                    emulator_image.take(store, image, each)
                except EnvironmentUnfit:
                    # The processor may run it, or another node may be chosen.
                    if request.nodes is None and each not in COMPAT.get(host.host().architecture, ()):
                        raise


@click.group(short_help="Add, list and remove emulators that are out of images.")
def emulators() -> None:
    """Keep emulators of other platforms in the store, out of an image that is pinned by its digest.

    A build uses them before those that are installed, in its own user namespace; nothing is registered on the host.
    """


_ROOT = click.option(
    "--root", metavar="DIR", default="", shell_complete=options.complete_directories, help="The store to keep them in."
)


@emulators.command(name="add")
@click.argument("architectures", metavar="ARCH...", nargs=-1, required=True)
@click.option(
    "--image",
    metavar="REF",
    default="",
    help=f"The image with /usr/bin/qemu-…, its tag as of now (default: $KANIFOLD_EMULATOR_IMAGE, or {USUAL}).",
)
@_ROOT
@options.INSECURE
@options.MIRRORS
@options.TIMEOUT
def add_command(
    architectures: tuple[str, ...],
    image: str,
    root: str,
    insecure: tuple[str, ...],
    mirrors: tuple[str, ...],
    timeouts: tuple[str, ...],
) -> None:
    """Take the emulator of each ARCH (arm64, linux/arm/v7, …) out of an image, and print the image's digest."""
    wanted = [_architecture(each) for each in architectures]
    settings = registry_settings.with_flags(registry_settings.load_settings(), insecure, mirrors, timeouts)
    name = names.parse(image or os.environ.get("KANIFOLD_EMULATOR_IMAGE", "") or USUAL)
    with open_store(root or None) as store:
        with open_display("plain") as display, open_context(settings, display) as context:
            found = _image(open_source(name, context.client), str(name), context.emit)
            taken = [emulator_image.take(store, found, each) for each in wanted]
        for each in taken:
            kept_emulators.add(store, found.digest, each.architecture)
        durability.sync(store)
    _print(taken)


@emulators.command(name="ls")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@_ROOT
def ls_command(as_json: bool, root: str) -> None:
    """List the emulators that were added."""
    with open_store(root or None) as store:
        found = kept_emulators.added(store)
    if as_json:
        print_json([_as_data(each) for each in found])
    else:
        _print(found)


@emulators.command(name="rm")
@click.argument("architectures", metavar="ARCH...", nargs=-1, required=True)
@_ROOT
def rm_command(architectures: tuple[str, ...], root: str) -> None:
    """Remove what was added for each ARCH. The files go when the store is pruned."""
    wanted = [_architecture(each) for each in architectures]
    with open_store(root or None) as store:
        there = {each.architecture for each in kept_emulators.added(store)}
        for each in wanted:
            if each not in there:
                raise UsageError(
                    f"no emulator of {each} was added", why=f"there are: {', '.join(sorted(there)) or 'none'}"
                )
        for each in wanted:
            kept_emulators.remove(store, each)


def _image(source: ImageSource, name: str, emit: Emit) -> EmulatorImage:
    """Return the image of this host's platform that ``source`` has as ``name``."""
    emit(events.Resolving(ref=name))
    root = source.root()
    digest = root.descriptor.digest
    emit(events.Resolved(ref=name, digest=digest))

    def read(descriptor: Descriptor) -> bytes:
        if descriptor.media_type in DOCUMENT_TYPES:
            return source.document(descriptor).data
        return source.read(descriptor, emulator_image.CONFIG_LIMIT)

    pinned = _with_digest(names.parse(name), digest)
    return emulator_image.select(pinned, digest, root.content, read, source.stream)


def _with_digest(name: ImageName, digest: str) -> str:
    if isinstance(name, LayoutName):
        return str(replace(name, tag="", digest=digest))
    return name.reference.repository_only().with_digest(digest).familiar()


def _architecture(text: str) -> str:
    """Parse ``arm64``, ``linux/arm/v7``, …: a platform that needs an emulator here, and for which there is one."""
    architecture = parse(text if "/" in text else f"linux/{text}").architecture
    if architecture == host.host().architecture:
        raise UsageError(f"{text[:200]} needs no emulator", why=f"this host is {host.host()}")
    if architecture not in binfmt.QEMU:
        raise UsageError(f"no emulator is known for {text[:200]}", why=f"there are some for {', '.join(binfmt.QEMU)}")
    return architecture


def _print(found: Iterable[KeptEmulator]) -> None:
    for each in found:
        print_line(f"{each.architecture:<8}  {each.file:<18} {shown(each.size):>8}  {each.image}")


def _as_data(each: KeptEmulator) -> dict[str, Any]:
    return {
        "architecture": each.architecture,
        "image": each.image,
        "file": each.file,
        "digest": each.digest,
        "size": each.size,
    }
