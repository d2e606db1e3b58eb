"""``kanifold build``: one request from its plan to its published index.

(1) Place: a node for every platform. (2) Plan: read the Dockerfile, pin external images. (3) Fan out. (4) Verify and
audit. (5) Join and publish, index first, tags last. An error or Ctrl-C at any point before (5) leaves no trace.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from executor import protocol
from executor.registry import auth, reference
from executor.registry.notices import Notice, Remark, Wait
from executor.registry.reference import Reference
from executor.solver.graph import External
from executor.store import policy
from executor.store.removal import remove_tree
from executor.store.store import Store, default_root, open_store
from orchestrator import audit, publish, result_cache, warnings
from orchestrator import plan as planning
from orchestrator.contexts import FetchOptions
from orchestrator.fanout import Emit, PlatformFailure, PlatformResult, build_all, read_secret, request_executors
from orchestrator.node import Node, Placement, local, place
from orchestrator.plan import Plan
from orchestrator.prefork import PreforkServer
from orchestrator.publish import BuildResult, Image
from orchestrator.registries import Enter, Registry
from orchestrator.request import Request
from orchestrator.view import events, open_display
from platforms import debug
from platforms.errors import AuditError, BuildError, EnvironmentUnfit, Interrupted, KanifoldError, Problem
from platforms.replacing import replacing

if TYPE_CHECKING:
    from orchestrator.load import Loader

_RESOLVED_AT_ONCE = 8
"""Images that are asked for together."""
_LAST_MOMENT = 1.9
"""Seconds after an interruption in which the process ends itself, whatever it waits for: a clean stop takes less."""


def build(request: Request, plan: Plan | None, nursery: PreforkServer | None, enter: Enter) -> int:
    """Do it, show it, and return the process's exit status (``platforms.errors`` lists them).

    The ``plan`` has been made if everything for it was at hand; executors for this machine are in the ``nursery``.
    Registries are taken up with ``enter``.
    """
    if not request.ssh:
        return _kept(request, plan, local(nursery), enter)
    from orchestrator.agent import agents

    with agents(request.ssh) as sockets:
        return _kept(replace(request, agents=sockets), plan, local(nursery), enter)


def _kept(request: Request, plan: Plan | None, here: Node, enter: Enter) -> int:
    """The same, and the store then has the size that it is to have."""
    root = os.path.abspath(request.root or default_root())
    wanted = policy.load(root)
    status = _shown(request, plan, here, enter)
    if status != Interrupted.exit_code:
        from orchestrator import tidying

        tidying.tidy(root, wanted)
    return status


def traced(path: str, emit: Emit) -> contextlib.AbstractContextManager[Emit]:
    """``emit``, with a trace of what passes it in the file ``path``; "" is no file."""
    if not path:
        return contextlib.nullcontext(emit)
    from orchestrator.trace import recorded

    return recorded(path, emit)


def _shown(request: Request, plan: Plan | None, here: Node, enter: Enter) -> int:
    with open_display(request.progress) as display, traced(request.trace, display.emit) as emit:
        try:
            product = asyncio.run(_interruptible(request, here, emit, plan, enter))
        except KanifoldError as error:
            outcome: events.Outcome = "cancelled" if isinstance(error, Interrupted) else "failed"
            troubles = error.troubles if isinstance(error, _PlatformsLostError) else (events.Trouble(error.problem),)
            emit(events.BuildEnded(outcome=outcome, troubles=troubles))
            return error.exit_code
        emit(events.BuildEnded(outcome="built", digest=product.root.digest))
    _say(request, product)
    return 0


class _PlatformsLostError(BuildError):
    """Platforms were not built. Carries every reason; the exit status is that of the first."""

    def __init__(self, lost: Sequence[PlatformFailure]) -> None:
        first = lost[0].error
        super().__init__(first.problem.what, why=first.problem.why)
        self.troubles = tuple(events.Trouble(each.error.problem, str(each.placement.platform)) for each in lost)
        self.exit_code = first.exit_code  # type: ignore[misc]


async def _interruptible(request: Request, here: Node, emit: Emit, plan: Plan | None, enter: Enter) -> BuildResult:
    """The build, ended cleanly by the first Ctrl-C, SIGTERM or hang-up, and soon: more of them change nothing."""
    task = asyncio.ensure_future(_build(request, here, emit, plan, enter))
    loop = asyncio.get_running_loop()
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which is how nohup says that it may go on
        signals.append(signal.SIGHUP)

    def stop() -> None:
        task.cancel()
        for each in signals:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_IGN)
        last = threading.Timer(_LAST_MOMENT, os._exit, (Interrupted.exit_code,))
        last.daemon = True
        last.start()

    for each in signals:
        loop.add_signal_handler(each, stop)
    try:
        return await task
    except asyncio.CancelledError as error:
        raise Interrupted("the build was interrupted") from error


def _named(context: str) -> str:
    """``context`` as it may be shown: a URL may hold a password."""
    if "://" not in context:
        return context
    from executor.context.http import shown

    return shown(context)


async def _may_push(request: Request, registry: Registry, pushing: asyncio.Event) -> None:
    """Ask registries whether they will take what is built, once it is known that something will be."""
    await pushing.wait()
    await publish.check_push(request.repositories, registry)


class _Environment(msgspec.Struct, frozen=True):
    """Where a build takes place, and who is to hear of it."""

    request: Request
    keychain: auth.Keychain
    registry: Registry
    store: Store
    scratch: str
    """A path for temporary files, where nothing is yet."""
    emit: Emit
    pushing: asyncio.Event
    """To be set as soon as it is known that something will be pushed that is not there."""
    may_push: asyncio.Task[None]
    """Done when the registries have said that they will take what is built."""
    loader: Loader | None = None
    """Who takes what is loaded."""


async def _build(request: Request, here: Node, emit: Emit, plan: Plan | None, enter: Enter) -> BuildResult:
    nodes = (here,)
    runs = plan is None or plan.may_run
    placements = tuple(place(each, nodes, runs=runs) for each in request.platforms)  # (1)
    for each in placements:
        debug.log("placed", platform=str(each.platform), node=each.node.name, runs=each.how or "nothing")
    loader = await asyncio.to_thread(_loader, request)
    emit(
        events.BuildStarted(
            platforms=tuple(
                events.Place(str(each.platform), "" if each.node.shares_disk else each.node.name, each.how)
                for each in placements
            ),
            name=str(request.tags[0].familiar()) if request.tags else _named(request.context),
            tags=tuple(each.familiar() for each in request.tags),
            jobs=request.jobs,
        )
    )
    keychain = auth.docker_keychain()
    store = open_store(request.root or None)
    registry = enter(request.registries, keychain, partial(_noticed, emit))
    scratch = store.session.temporary()
    try:
        async with asyncio.TaskGroup() as group:  # whichever fails first ends the other
            pushing = asyncio.Event()
            may_push = group.create_task(_may_push(request, registry, pushing))
            site = _Environment(request, keychain, registry, store, scratch, emit, pushing, may_push, loader)
            product = group.create_task(_made(site, plan, placements))
        return product.result()
    except ExceptionGroup as errors:
        raise errors.exceptions[0]  # noqa: B904 - its own cause is the better one
    finally:
        registry.close()
        if here.forks is not None:
            await here.forks.close()
        await asyncio.to_thread(remove_tree, scratch)
        store.close()


def _loader(request: Request) -> Loader | None:
    """Who takes what is loaded, found out before anything is built; None for a build that is not."""
    if not any(each.kind == "load" for each in request.outputs):
        return None
    from orchestrator import load

    loader = load.find(request.load_to)
    named = bool(request.tags) or all(each.names for each in request.outputs if each.kind == "load")
    load.check(loader, request.platforms, named=named)
    return loader


def _noticed(emit: Emit, notice: Notice) -> None:
    """Show what the registries' client says."""
    match notice:
        case Wait(registry, what, seconds, why, over):
            emit(events.Waiting(registry=registry, what=what, seconds=seconds, why=why, over=over))
        case Remark(text):
            emit(events.Cautioned(problem=Problem("Registry", text), rule="Registry"))


async def _made(site: _Environment, plan: Plan | None, placements: Sequence[Placement]) -> BuildResult:
    may_repeat = plan is not None and result_cache.may_come(
        site.request, placements
    )  # what is fetched has no lasting place
    if plan is None:
        plan = await _plan(site)  # (2)
    _refuse_unfit(site.request, plan, placements)
    for caution in warnings.without_epoch(site.request, plan):
        site.emit(caution)
    name = os.path.basename(site.scratch)
    jobs = [(each, _job(site.request, plan, each, name)) for each in placements]
    answers = await asyncio.to_thread(result_cache.find, jobs, site.store) if may_repeat else ()
    stop = threading.Event()

    def otherwise() -> None:
        site.pushing.set()
        request_executors(placements, site.request)

    try:
        pins, holding = await asyncio.gather(
            _pin(site, plan, answers, stop),
            result_cache.hold(answers, jobs, site.store, stop, otherwise),
        )
    except KanifoldError:  # an image cannot be had, perhaps because a context that was to stand for it does not
        for caution in warnings.unused_contexts(plan, ()):
            site.emit(caution)
        raise
    checked = asyncio.create_task(asyncio.to_thread(warnings.of, site.request, plan, pins, site.registry, site.store))
    if warnings.may_fail(site.request, plan):
        await checked
    jobs = [(each, replace(job, pins=pins)) for each, job in jobs]
    built, lost = await _built(site, jobs, answers if holding and not stop.is_set() else ())  # (3)
    staying = list(built)
    leaving: list[asyncio.Task[None]] = []

    def dismiss(each: PlatformResult) -> None:
        staying.remove(each)
        leaving.append(asyncio.create_task(each.executor.close()))

    try:
        taken = {name for each in built for name in each.result.contexts}
        for caution in (*await checked, *warnings.unused_contexts(plan, taken)):
            site.emit(caution)
        if lost:
            raise _PlatformsLostError(lost)
        product = await _finish(site, plan, built, dismiss)
        if may_repeat:
            await asyncio.to_thread(result_cache.note, built, jobs, site.store)
        return product
    finally:
        await asyncio.gather(*leaving, *(each.executor.close() for each in staying), return_exceptions=True)


async def _built(
    site: _Environment, jobs: result_cache.Jobs, answers: Sequence[result_cache.CachedResult]
) -> tuple[tuple[PlatformResult, ...], tuple[PlatformFailure, ...]]:
    """What comes of the ``orders``: what they were answered with before, or what executors make of them."""
    if answers and await result_cache.are_there(answers, jobs, site.registry):
        debug.log("answered from memory: no executor is asked")
        return result_cache.replay(answers, jobs, site.emit), ()
    site.pushing.set()
    if any(job.pins or job.push for _, job in jobs):  # else nobody has been asked anything
        learned = await asyncio.to_thread(site.registry.learned)
        jobs = [(each, replace(job, registries=learned)) for each, job in jobs]
    return await build_all(jobs, site.request, site.keychain, site.registry, site.emit)


def _refuse_unfit(request: Request, plan: Plan, placements: Iterable[Placement]) -> None:
    """Raise ``EnvironmentUnfit`` when a platform's programs would have to run that cannot, before anything is done."""
    for each in placements:
        if each.unfit is not None and each.platform in plan.running:
            raise each.unfit
        if each.platform.os == "windows" and not all(output.holds_files for output in request.outputs):
            raise EnvironmentUnfit(
                f"cannot make images for {each.platform}",
                why="layers of Windows images have a form of their own",
                remedy="have the files without the image: -o type=local,dest=DIR",
            )


async def _plan(site: _Environment) -> Plan:
    """The plan; what has to be fetched for it goes below the site's ``scratch``."""
    request = site.request
    secrets = {each.id: each for each in request.secrets}

    def secret(name: str) -> bytes | None:
        found = secrets.get(name)
        return None if found is None else read_secret(found.file, found.variable)

    os.mkdir(site.scratch, 0o700)
    means = FetchOptions(site.scratch, secret, request.agents.get("default", ""), emit=site.emit)
    reading = asyncio.create_task(asyncio.to_thread(planning.read, request, request.platforms, means))
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        means.cancel.set_result(None)
        await asyncio.gather(reading, return_exceptions=True)
        raise


async def _finish(
    site: _Environment, plan: Plan, built: Sequence[PlatformResult], dismiss: Callable[[PlatformResult], None]
) -> BuildResult:
    """Check, join and publish what was ``built``. An executor that is not needed for that any more is dismissed."""
    request, registry, emit = site.request, site.registry, site.emit
    repositories = request.repositories
    tags = _pushed_tags(request)
    standing = asyncio.create_task(publish.standing(tags, registry))
    images: list[Image] = []
    for each in built:  # (4)
        image = await publish.verify(each, registry, repositories[0] if repositories else None, site.store)
        if _local(request) and not each.placement.node.shares_disk:
            await publish.fetch(each, image, site.store)
        images.append(image)
        _audit(request, plan, each, emit)
        if all(output.kind == "registry" for output in request.outputs):
            dismiss(each)
    product = publish.join(request, images)
    if site.pushing.is_set():
        await site.may_push
    else:  # all is there: what a tag may be moved to is found out by moving it
        site.may_push.cancel()
    if len(tags) != 1 or len(repositories) > 1:  # (5) one tag comes with what it names
        await publish.push(product, repositories, registry, emit)
    for output in request.outputs:
        if output.holds_files:
            from orchestrator import files

            await files.write(output, built, product.root.digest, emit)
        elif output.holds_images:
            from orchestrator import images as layouts

            where = layouts.Where(site.store, site.loader)
            await layouts.write(output, product, request, where, emit)
    await publish.tag(product, tags, await standing, registry, emit)
    _note(request, product)
    return product


def _audit(request: Request, plan: Plan, built: PlatformResult, emit: Emit) -> None:
    if request.audit == "off":
        return
    platform = built.placement.platform
    allowed = (*request.audit_allow, *audit.allowed_by(plan.dockerfile))
    findings = audit.audit(platform, built.result.findings, allowed)
    if not findings:
        return
    problem = audit.problem(platform, findings)
    if request.audit == "error":
        raise AuditError.of(problem)
    emit(events.Cautioned(problem=problem, rule="Audit"))


async def _pin(
    site: _Environment, plan: Plan, answers: Sequence[result_cache.CachedResult], stop: threading.Event
) -> tuple[protocol.Pin, ...]:
    """Resolve every external image once, several at a time. Sets ``stop`` when ``answers`` are not for these images."""
    some = asyncio.Semaphore(_RESOLVED_AT_ONCE)

    async def resolve(image: External) -> protocol.Pin:
        name = image.name
        parsed = reference.parse(name).completed()
        try:
            async with some:
                site.emit(events.Resolving(ref=name))
                digest = parsed.digest or (await asyncio.to_thread(site.registry.resolve, parsed)).digest
        except KanifoldError as error:
            stop.set()
            what = error.problem.what
            if name not in what:
                what = f"cannot resolve the image {name}: {what}"  # its registry's name alone says little
            raise KanifoldError.of(replace(error.problem, what=what, where=image.where)) from error
        site.emit(events.Resolved(ref=name, digest=digest))
        debug.log("image pinned", name=name, digest=digest)
        return protocol.Pin(name, digest)

    pins = tuple(await asyncio.gather(*(resolve(each) for each in plan.images)))
    if any(each.pins != pins for each in answers):
        stop.set()
    return pins


def _job(
    request: Request,
    plan: Plan,
    placement: Placement,
    build: str,
) -> protocol.Job:
    """The job for one platform of the build with the unique name ``build``, but for what registries have to say."""
    return protocol.Job(
        version=protocol.VERSION,
        build=build,
        platform=str(placement.platform),
        emulation=placement.emulation,
        dockerfile=plan.data,
        dockerfile_name=plan.name,
        target=request.target,
        build_args=plan.build_args,
        labels=request.labels,
        annotations=request.annotated("manifest", str(placement.platform)),
        contexts=plan.contexts,
        registries=request.registries,
        root=request.root,
        push=tuple(str(each) for each in request.repositories),
        local=_local(request),
        no_cache=request.no_cache,
        no_cache_stages=request.no_cache_stages,
        allow=request.allow,
        compression=request.compression,
        cache_from=request.cache_from,
        cache_to=request.cache_to,
        cache_ttl=request.cache_ttl,
        oci=all(each.oci_media_types for each in request.outputs),
        epoch=plan.epoch,
        rewrite_timestamps=request.rewrite_timestamps,
        hosts=request.hosts,
        network=request.network,
        default_network=request.default_network,
        shm_size=request.shm_size,
        ulimits=request.ulimits,
        limits=request.limits,
        cgroup_parent=request.cgroup_parent,
        implicit_platform=request.implicit_platform,
    )


def _local(request: Request) -> bool:
    return any(each.holds_images for each in request.outputs)


def _pushed_tags(request: Request) -> tuple[Reference, ...]:
    """The tags that a successful build moves."""
    if not any(each.kind == "registry" for each in request.outputs):
        return ()
    found = {str(each): each for each in request.tags}
    for output in request.outputs:
        if output.kind == "registry":
            if output.push_by_digest:
                return ()
            for name in output.names:
                parsed = reference.parse(name).completed()
                found[str(parsed)] = parsed
    return tuple(found.values())


def _note(request: Request, product: BuildResult) -> None:
    """Write ``--metadata-file`` and ``--iidfile``."""
    if request.metadata_file:
        import json

        root = product.root
        document: dict[str, object] = {
            "containerimage.digest": root.digest,
            "containerimage.descriptor": {
                "mediaType": root.media_type,
                "digest": root.digest,
                "size": root.size,
                **({"annotations": dict(sorted(root.annotations))} if root.annotations else {}),
            },
        }
        if len(product.images) == 1:
            document["containerimage.config.digest"] = product.images[0].manifest.config.digest
        if request.tags:
            document["image.name"] = ",".join(str(each) for each in request.tags)
        document["kanifold.platforms"] = {
            str(each.platform): {"digest": each.descriptor.digest, "config": each.manifest.config.digest}
            for each in product.images
        }
        _write_file(request.metadata_file, json.dumps(document, indent=2) + "\n")
    if request.iid_file:
        only = product.images[0] if len(product.images) == 1 else None
        _write_file(request.iid_file, only.manifest.config.digest if only else product.root.digest)


def _write_file(path: str, text: str) -> None:
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise BuildError(f"cannot write {path}", why=error.strerror or str(error)) from error


def _say(request: Request, product: BuildResult) -> None:
    """What the build came to, on stdout: nothing but the digest, unless stdout is the output or there is no output."""
    if request.outputs and not any(each.writes_stdout for each in request.outputs):
        try:
            print(product.root.digest, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer would fail again at the exit
            raise BuildError("cannot write the digest to stdout", why=error.strerror or str(error)) from error
