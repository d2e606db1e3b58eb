"""Building a release in one session: its images side by side, each after those that it is built from.

(1) Every image is built, audited and pushed by digest; one that others are built from, or that is tested, is written to
an OCI layout of the session, too. (2) It is tested. (3) When that is true of all images, local outputs are written.
Then tags can be set (``tag_publication.publish_all``). The first error cancels all that is not done.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.store.removal import remove_tree
from orchestrator import build as building
from orchestrator import plan as planning
from orchestrator.build import PlatformsFailedError
from orchestrator.contexts import FetchedContexts
from orchestrator.nodes.node import Node
from orchestrator.nodes.placement import LOCAL, declared_name
from orchestrator.publish import PreparedImage
from orchestrator.release.build_order import SelectedImages, refused
from orchestrator.release.image_events import ImageEvents, label
from orchestrator.release.image_request import with_inline_dockerfile
from orchestrator.release.image_tests import TestBench
from orchestrator.release.model import ReleaseImage
from orchestrator.request import BuildRequest
from orchestrator.results import BuildResult
from orchestrator.session import Session
from orchestrator.view import events
from platforms.errors import KanifoldError
from platforms.paths import below

_CONTEXTS: Final = "fetched.contexts"
"""The directory of fetched contexts; no image has a name with a dot."""
MakeRequest = Callable[[ReleaseImage, Mapping[str, str]], BuildRequest]
"""Makes the request of an image from the places (named contexts) of those that it is built from, by name."""


class BuiltImage(msgspec.Struct, frozen=True):
    """An image that was built and tested, and the tags to set."""

    image: ReleaseImage
    request: BuildRequest
    prepared: PreparedImage


class ImageFailedError(PlatformsFailedError):
    """An image of a release failed: its errors, with the name of the image before each platform."""

    @classmethod
    def of_image(cls, image: ReleaseImage, error: KanifoldError) -> ImageFailedError:
        """Return the error that ``image`` has failed with ``error``."""
        made = cls(error.problem.what, why=error.problem.why)
        made.exit_code = error.exit_code  # type: ignore[misc]
        if isinstance(error, PlatformsFailedError):
            made.troubles = tuple(replace(each, platform=label(image.name, each.platform)) for each in error.troubles)
        else:
            made.troubles = (events.Failure(refused(image, error).problem),)
        return made


class _Progress(msgspec.Struct):
    """How far the images are."""

    places: dict[str, asyncio.Future[str]]
    """Where each image that others are built from is, by name."""
    missing: int
    """Number of images that are not built and tested."""
    complete: asyncio.Event


class ReleaseBuild(msgspec.Struct, frozen=True):
    """The build of a release."""

    session: Session
    selected: SelectedImages
    make_request: MakeRequest
    directory: str
    """The directory that the paths of its file are relative to."""
    provided: Mapping[str, str] = {}
    """The places of images that are there already, by name."""

    async def build(self) -> tuple[BuiltImage, ...]:
        """Build and test all images, and write local outputs. Returns them in order."""
        images = self.selected.images
        loop = asyncio.get_running_loop()
        progress = _Progress({each.name: loop.create_future() for each in images}, len(images), asyncio.Event())
        with _scratch(self.session) as scratch:
            os.mkdir(contexts := below(scratch, _CONTEXTS))
            capacity = replace(self.session.capacity, fetched=FetchedContexts(contexts))
            shared = replace(self, session=replace(self.session, capacity=capacity))
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(shared._image(each, progress, scratch)) for each in images]
            except ExceptionGroup as errors:
                raise errors.exceptions[0]  # noqa: B904 - its own cause is the better one
            finally:
                for each in progress.places.values():
                    each.cancel()
        return tuple(each.result() for each in tasks)

    async def _image(self, image: ReleaseImage, progress: _Progress, scratch: str) -> BuiltImage:
        """Build and test one image, and wait for the others before its local outputs are written."""
        places = {
            name: self.provided[name] if name in self.provided else await asyncio.shield(progress.places[name])
            for name in image.depends_on
        }
        try:
            request = self._request(image, places, scratch)
            show = ImageEvents(self.session.emit, image.name, bool(image.tests))
            session = replace(self.session, nodes=nodes_of(self.session.nodes, request), emit=show)
            work = _ImageWork(self, image, request, progress, scratch)
            plan = await asyncio.to_thread(planning.at_hand, request)
            prepared = await building.prepare(session, request, plan, work.accept)
        except KanifoldError as error:
            raise ImageFailedError.of_image(image, error) from error
        return BuiltImage(image, request, prepared)

    def _request(self, image: ReleaseImage, places: Mapping[str, str], scratch: str) -> BuildRequest:
        request = self.make_request(with_inline_dockerfile(image, scratch), places)
        if image.name not in self.selected.wanted:
            request = replace(request, outputs=(), tags=())
        used = any(image.name in each.depends_on for each in self.selected.images)
        return replace(request, staged=below(scratch, image.name)) if used or image.tests else request


class _ImageWork(msgspec.Struct, frozen=True):
    """What is done with an image once it is built."""

    release: ReleaseBuild
    image: ReleaseImage
    request: BuildRequest
    progress: _Progress
    scratch: str

    async def accept(self, result: BuildResult) -> None:
        """Let the images that are built from it begin, test it, and wait until all images are tested."""
        place = f"oci-layout://{self.request.staged}@{result.root.digest}"
        self.progress.places[self.image.name].set_result(place)
        if self.image.tests:
            session = self.release.session
            bench = TestBench(
                replace(session, nodes=nodes_of(session.nodes, self.request)),
                self.image,
                self.request,
                place,
                self.release.directory,
                self.scratch,
                session.emit,
            )
            await bench.test_all(result)
        self.progress.missing -= 1
        if not self.progress.missing:
            self.progress.complete.set()
        await self.progress.complete.wait()


def nodes_of(nodes: Sequence[Node], request: BuildRequest) -> tuple[Node, ...]:
    """Return those of ``nodes`` that ``request`` may use."""
    if request.nodes is None:
        return tuple(each for each in nodes if each.name == LOCAL)
    return tuple(each for each in nodes if request.nodes.entry(declared_name(each.name)) is not None)


@contextmanager
def _scratch(session: Session) -> Iterator[str]:
    """Yield a new directory of the store's disk, which is removed when the session ends."""
    place = session.store.session.temporary()
    os.makedirs(place)
    try:
        yield place
    finally:
        session.leave(asyncio.to_thread(remove_tree, place))


def started(
    images: Sequence[ReleaseImage], requests: Sequence[BuildRequest], name: str, jobs: int
) -> events.BuildStarted:
    """Return the first event of a release: the platforms of all its images."""
    return events.BuildStarted(
        platforms=tuple(
            events.PlatformPlacement(label(image.name, str(platform)), after=image.depends_on)
            for image, request in zip(images, requests, strict=True)
            for platform in request.platforms
        ),
        name=name,
        tags=tuple(tag.familiar() for request in requests for tag in request.tags),
        jobs=jobs,
    )
