"""``kanifold index`` and ``kanifold copy`` against registries in this process: with referrers, and with lies."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from registry_server import Asked, MemoryRegistry, Said, Served, digest_of, error, served
from small_images import CONFIG, EMPTY, INDEX, LAYER, MANIFEST, REF_NAME, Images

from executor.registry.registry_settings import RegistrySettings
from orchestrator.cli import cli
from orchestrator.index import manifest_graph
from orchestrator.index.command_context import open_context
from orchestrator.view.display import open_display
from platforms.errors import ArchiveError, KanifoldError, RegistryError, UsageError

Run = Callable[..., str]
Document = dict[str, Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: ``run("copy", …)`` is what it says on stdout."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def command(*words: str | Path) -> str:
        capsys.readouterr()
        cli.main([str(each) for each in words], prog_name="kanifold", standalone_mode=False)
        return capsys.readouterr().out

    return command


class Place:
    """A registry in this process."""

    def __init__(self, stack: ExitStack) -> None:
        self.memory = MemoryRegistry()
        self.server: Served = stack.enter_context(served(self.memory))
        self.host = self.server.host

    def digest(self, repository: str, tag: str) -> str:
        """What a tag means; "" for nothing."""
        found = self.memory.manifests.get((repository, tag))
        return digest_of(found[1]) if found else ""


@pytest.fixture
def places() -> Iterator[tuple[Place, Place]]:
    with ExitStack() as stack:
        yield Place(stack), Place(stack)


def signed(text: str = "") -> tuple[Images, Document]:
    """An index of one image; each of the two is signed thrice, and a signature is signed."""
    images = Images()
    image = images.entry("linux/amd64", text)
    root = images.index([image])
    for subject in (root, image):
        for number in "123":
            images.signature(images.signature(subject, number))
    return images, root


# -- referrers


@pytest.mark.parametrize("has_api", [True, False])
def test_signatures_go_from_a_registry_that_lists_them_to_one_that_does_or_does_not(
    run: Run, places: tuple[Place, Place], has_api: bool
) -> None:
    here, there = places
    here.memory.lists_referrers = True
    there.memory.lists_referrers = has_api
    images, root = signed()
    images.put(here.memory, "app", {"1": root})
    run("copy", f"{here.host}/app:1", f"{there.host}/app:1")
    assert there.digest("app", "1") == root["digest"]
    assert {digest for _, digest in there.memory.blobs} | images.types.keys() == set(images.blobs)
    assert all(("app", digest) in there.memory.manifests for digest in images.types)
    lists = [tag for _, tag in there.memory.manifests if tag.startswith("sha256-")]
    assert len(lists) == (0 if has_api else 8)
    run("copy", f"{there.host}/app:1", "oci:out:1")
    assert len(list(Path("out/blobs/sha256").iterdir())) == len(images.blobs)


def test_a_referrer_of_something_else_is_refused(run: Run, places: tuple[Place, Place]) -> None:
    here, there = places
    images, root = signed()
    stranger = images.signature(images.image("linux/s390x"))
    images.put(here.memory, "app", {"1": root})
    lying = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [stranger]}).encode()
    here.memory.fault = lambda asked: Said(200, {"Content-Type": INDEX}, lying) if "referrers" in asked.path else ...
    with pytest.raises(ArchiveError, match="is listed as a referrer"):
        run("copy", f"{here.host}/app:1", f"{there.host}/app:1")
    assert there.memory.manifests == {}
    run("copy", f"{here.host}/app:1", f"{there.host}/app:1", "--no-referrers")


def test_pages_of_referrers_without_end_are_refused(run: Run, places: tuple[Place, Place]) -> None:
    here, there = places
    images, root = signed()
    images.put(here.memory, "app", {"1": root})
    body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()

    def endless(asked: Asked) -> object:
        if "referrers" in asked.path:
            return Said(200, {"Content-Type": INDEX, "Link": f'<{asked.path}?n=1>; rel="next"'}, body)
        return ...

    here.memory.fault = endless
    with pytest.raises(RegistryError, match="more than 64 pages"):
        run("copy", f"{here.host}/app:1", f"{there.host}/app:1")


@pytest.mark.parametrize("answer", [Said(200, {"Content-Type": "text/html"}, b"<html>"), Said(405), Said(501)])
def test_registries_that_do_not_know_the_question_have_no_referrers_api(
    run: Run, places: tuple[Place, Place], answer: Said
) -> None:
    here, there = places
    images, root = signed()
    images.put(here.memory, "app", {"1": root})
    here.memory.fault = lambda asked: answer if "/referrers/" in asked.path else ...
    assert run("copy", f"{here.host}/app:1", f"{there.host}/app:1").strip() == root["digest"]


# -- lies


def lie_about_the_size(images: Images, image: Document) -> Document:
    return {**image, "size": image["size"] + 1}


def lie_about_the_type(images: Images, image: Document) -> Document:
    return {**image, "mediaType": INDEX}


def lie_about_the_kind(images: Images, image: Document) -> Document:
    """A layer where a manifest should be."""
    return images.blob(LAYER, b"a layer")


def lie_twice(images: Images, image: Document) -> Document:
    """One manifest under two sizes."""
    return images.index([image, {**image, "size": image["size"] + 1}])


def lie_about_a_blob(images: Images, image: Document) -> Document:
    """One layer with two sizes, in two manifests."""
    layer = images.blob(LAYER, b"layer")
    config = images.blob(CONFIG, b'{"os":"linux","architecture":"arm64"}')
    return images.index(
        [
            images.document(MANIFEST, {"config": config, "layers": [layer]}),
            images.document(MANIFEST, {"config": config, "layers": [{**layer, "size": 1}]}),
        ]
    )


def both_kinds(images: Images, image: Document) -> Document:
    """A document that is a manifest and an index (CVE-2021-41190)."""
    config = images.blob(CONFIG, b"{}")
    return images.document(MANIFEST, {"config": config, "layers": [], "manifests": [image]})


def nested_without_end(images: Images, image: Document) -> Document:
    for _ in range(8):
        image = images.index([image])
    return image


LIES = [lie_about_the_size, lie_about_the_type, lie_about_the_kind, lie_twice, lie_about_a_blob, both_kinds,
        nested_without_end]  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_what_is_not_what_it_is_said_to_be_is_not_copied(
    run: Run, places: tuple[Place, Place], lie: Callable[[Images, Document], Document], tmp_path: Path
) -> None:
    here, there = places
    images = Images()
    root = images.index([lie(images, images.image())])
    images.put(here.memory, "app", {"1": root})
    images.layout(tmp_path / "in", {"1": root})
    for source in (f"{here.host}/app:1", "oci:in:1"):
        for target in (f"{there.host}/app:1", "oci:out:1"):
            with pytest.raises((ArchiveError, RegistryError)):
                run("copy", source, target)
    assert there.memory.manifests == {}
    assert not (tmp_path / "out").exists()


def test_documents_with_another_digest_are_not_taken(run: Run, places: tuple[Place, Place]) -> None:
    """A registry that serves an index which lists itself: the only way to a circle."""
    here, there = places
    images = Images()
    inner = images.image()
    root = images.index([inner])
    images.put(here.memory, "app", {"1": root})
    circle = images.blobs[root["digest"]]
    here.memory.fault = lambda asked: (
        Said(200, {"Content-Type": MANIFEST}, circle) if inner["digest"] in asked.path else ...
    )
    with pytest.raises(RegistryError):
        run("copy", f"{here.host}/app:1", f"{there.host}/app:1")
    assert there.memory.manifests == {}


@pytest.mark.parametrize("body", [b"x" * 40, b"", None], ids=["another", "none", "missing"])
def test_a_blob_that_is_not_what_its_digest_says_is_not_pushed(
    run: Run, places: tuple[Place, Place], body: bytes | None, tmp_path: Path
) -> None:
    here, there = places
    images, root = signed()
    images.put(here.memory, "app", {"1": root})
    layer = next(digest for digest, data in images.blobs.items() if data.startswith(b"linux/amd64"))
    answer = error(404, "BLOB_UNKNOWN", "gone") if body is None else Said(200, {}, body)
    here.memory.fault = lambda asked: answer if f"blobs/{layer}" in asked.path else ...
    for target in (f"{there.host}/app:1", "oci:out:1", "oci-archive:out.tar"):
        with pytest.raises(RegistryError, match=layer):
            run("copy", f"{here.host}/app:1", target)
    assert there.digest("app", "1") == ""
    assert ("app", layer) not in there.memory.blobs
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []


def test_an_index_of_a_hundred_thousand_entries_is_refused(run: Run, places: tuple[Place, Place]) -> None:
    here, there = places
    for count, why in ((100_000, "sent too much"), (20_000, f"more than {manifest_graph.DOCUMENTS} manifests")):
        images = Images()
        root = images.index([{"mediaType": MANIFEST, "digest": f"sha256:{n:064x}", "size": 1} for n in range(count)])
        images.put(here.memory, "app", {"1": root})
        for words in (
            ("copy", f"{here.host}/app:1", f"{there.host}/app:1"),
            ("index", "inspect", f"{here.host}/app:1"),
        ):
            with pytest.raises(KanifoldError, match=why):
                run(*words)
    assert len(here.server.seen("GET", "manifests")) == 4, "none of them was asked for"


def test_control_characters_are_shown_and_not_obeyed(run: Run, places: tuple[Place, Place]) -> None:
    here, _ = places
    images = Images()
    hostile = "\x1b]0;owned\x07\n##[command]x\u202e"
    root = images.index([images.entry(annotations={hostile: hostile})], annotations={"k": hostile})
    images.put(here.memory, "app", {"1": root})
    for words in ((), ("--format", "json"), ("--format", "{{json .Manifest}}"), ("--format", "{{.Manifest}}"),
                  ("--format", "{{.Manifest.Annotations.k}}")):  # fmt: skip
        said = run("index", "inspect", f"{here.host}/app:1", *words)
        assert "\x1b" not in said
        assert "\u202e" not in said
        assert "##[" not in said


# -- all or nothing


def test_a_tag_that_moves_meanwhile_is_noticed_and_stays(run: Run, places: tuple[Place, Place]) -> None:
    here, there = places
    images, root = signed()
    images.put(here.memory, "app", {"1": root})
    images.put(there.memory, "app", {"1": root})
    other = images.image("linux/s390x")
    moved: list[str] = []

    def meanwhile(asked: Asked) -> object:
        """Somebody moves the tag once the new index is there."""
        if asked.method == "PUT" and "/manifests/sha256:" in asked.path and not moved:
            moved.append(there.memory.add_manifest("app", "1", MANIFEST, images.blobs[other["digest"]]))
        return ...

    there.memory.fault = meanwhile
    with pytest.raises(RegistryError, match="no tag has been moved") as caught:
        run("index", "annotate", f"{there.host}/app:1", "--annotation", "a=b")
    assert other["digest"] in caught.value.problem.why
    assert there.digest("app", "1") == other["digest"]


def test_a_registry_that_dies_between_two_tags_leaves_no_doubt(run: Run, places: tuple[Place, Place]) -> None:
    here, there = places
    images, root = signed()
    images.put(here.memory, "app", {"1": root})
    there.memory.fault = lambda asked: (
        error(403, "DENIED", "no more") if asked.method == "PUT" and asked.path.endswith("/b") else ...
    )
    names = [f"{there.host}/app:{tag}" for tag in "abc"]
    with pytest.raises(RegistryError) as caught:
        run("index", "create", *(word for name in names for word in ("-t", name)), f"{here.host}/app:1")
    assert f"{names[0]} has moved, {names[1]}, {names[2]} has not" in caught.value.problem.why
    assert [there.digest("app", tag) for tag in "abc"] == [root["digest"], "", ""]


def test_tags_move_last(run: Run, places: tuple[Place, Place]) -> None:
    here, there = places
    images, root = signed()
    images.put(here.memory, "app", {"1": root})
    run("index", "create", "-t", f"{there.host}/a:1", "-t", f"{there.host}/b:1", f"{here.host}/app:1")
    puts = [each.path for each in there.server.seen("PUT")]
    assert puts[-2:] == ["/v2/a/manifests/1", "/v2/b/manifests/1"]
    assert puts.index(f"/v2/b/manifests/{root['digest']}") < len(puts) - 2


def test_a_tag_that_means_it_already_is_left_alone(run: Run, places: tuple[Place, Place]) -> None:
    here, _ = places
    images, root = signed()
    images.put(here.memory, "app", {"1": root})
    here.memory.immutable = True
    assert run("index", "create", "-t", f"{here.host}/app:1", f"{here.host}/app:1").strip() == root["digest"]


def test_what_is_edited_is_the_registrys_own_and_not_a_mirrors(run: Run, places: tuple[Place, Place]) -> None:
    here, mirror = places
    images = Images()
    new, old = images.index([images.entry()]), images.index([images.entry("linux/arm64")])
    images.put(here.memory, "app", {"1": new})
    images.put(mirror.memory, "app", {"1": old})
    run(
        "index",
        "annotate",
        f"{here.host}/app:1",
        "--annotation",
        "a=b",
        "--registry-mirror",
        f"{here.host}=http://{mirror.host}",
    )
    found = json.loads(here.memory.manifests["app", "1"][1])
    assert [each["platform"]["architecture"] for each in found["manifests"]] == ["amd64"]


def test_a_descriptor_that_contradicts_the_image_is_refused(run: Run, places: tuple[Place, Place]) -> None:
    here, _ = places
    images = Images()
    image = images.image()
    images.put(here.memory, "app", {"1": image})
    for wrong in ({"size": 1}, {"mediaType": INDEX}):
        with pytest.raises((UsageError, ArchiveError)):
            run("index", "create", "-t", f"{here.host}/app:2", json.dumps({**image, **wrong}))
    assert here.digest("app", "2") == ""


def test_repositories_of_one_registry_are_sent_each_blob_once(run: Run, places: tuple[Place, Place]) -> None:
    here, there = places
    images, root = signed()
    images.put(here.memory, "app", {"1": root})
    run("index", "create", "-t", f"{there.host}/a:1", "-t", f"{there.host}/b:1", f"{here.host}/app:1")
    sent = [each for each in there.server.seen("PUT") if "/blobs/uploads/" in each.path]
    assert all(each.path.startswith("/v2/a/") for each in sent)
    in_a, in_b = ({digest for place, digest in there.memory.blobs if place == name} for name in "ab")
    assert in_a == in_b != set()


def test_a_registry_that_refuses_to_look_for_what_a_first_push_makes_is_pushed_to(
    run: Run, places: tuple[Place, Place]
) -> None:
    here, there = places
    images, root = signed()
    images.put(here.memory, "app", {"1": root})

    def unmade(asked: Asked) -> object:
        made = any(repository == "new" for repository, _ in there.memory.manifests)
        return error(403, "DENIED", "no such repository") if asked.path.endswith("manifests/1") and not made else ...

    there.memory.fault = unmade
    for expected in (("--expect", "none"), ("--no-clobber",)):
        with pytest.raises(RegistryError, match="does not allow"):
            run("copy", f"{here.host}/app:1", f"{there.host}/new:1", *expected)
    assert run("copy", f"{here.host}/app:1", f"{there.host}/new:1").strip() == root["digest"]


def test_an_edit_of_what_may_not_be_read_is_refused(run: Run, places: tuple[Place, Place]) -> None:
    here, _ = places
    here.memory.fault = lambda asked: error(403, "DENIED", "not yours")
    for words in (("index", "annotate"), ("index", "create", "--append", "-t")):
        with pytest.raises(RegistryError, match="does not allow"):
            run(*words, f"{here.host}/app:1", "--annotation", "a=b")


def test_other_transfers_are_not_waited_for_when_one_fails(run: Run, places: tuple[Place, Place]) -> None:
    here, there = places
    images = Images()
    config = images.blob(CONFIG, b'{"os":"linux","architecture":"amd64"}')
    slow, broken = images.blob(LAYER, b"slow"), images.blob(LAYER, b"broken")
    root = images.document(MANIFEST, {"config": config, "layers": [slow, broken]})
    images.put(here.memory, "app", {"1": root})
    waiting, over = threading.Event(), threading.Event()

    def fault(asked: Asked) -> object:
        if f"blobs/{slow['digest']}" in asked.path:
            waiting.set()
            over.wait()
        if f"blobs/{broken['digest']}" in asked.path:
            waiting.wait()
            return error(404, "BLOB_UNKNOWN", "gone")
        return ...

    here.memory.fault = fault
    try:
        with pytest.raises(RegistryError, match=broken["digest"]):
            run("copy", f"{here.host}/app:1", f"{there.host}/app:1")
        assert not over.is_set()
    finally:
        over.set()


# -- layouts that others have written


def test_no_referrer_takes_the_name_of_another_image_in_a_layout(run: Run, places: tuple[Place, Place]) -> None:
    here, _ = places
    images = Images()
    image, other = images.image(), images.image(text="other")
    config = images.blob(EMPTY, b"{}")
    names = {REF_NAME: "db", "io.containerd.image.name": "example.com/db:1"}
    referrer = {"config": config, "layers": [], "subject": image, "annotations": names | {"signed": "yes"}}
    here.memory.lists_referrers = True
    signature = images.document(MANIFEST, referrer)
    images.put(here.memory, "app", {"1": image})
    images.put(here.memory, "db", {"1": other})
    run("copy", f"{here.host}/db:1", "oci:layout:db", "--no-referrers")
    run("copy", f"{here.host}/app:1", "oci:layout:app")
    listed = json.loads(Path("layout/index.json").read_text())["manifests"]
    assert {each["annotations"].get(REF_NAME, ""): each["digest"] for each in listed} == {
        "db": other["digest"],
        "app": image["digest"],
        "": signature["digest"],
    }
    assert [each["annotations"] for each in listed if each["digest"] == signature["digest"]] == [{"signed": "yes"}]


@pytest.mark.parametrize("name", ["index.json", "oci-layout"])
def test_no_link_in_a_layout_leads_what_is_written_elsewhere(run: Run, places: tuple[Place, Place], name: str) -> None:
    here, _ = places
    images = Images()
    images.put(here.memory, "app", {"1": images.image()})
    run("copy", f"{here.host}/app:1", "oci:layout:app")
    Path("precious").write_text("precious")
    Path(f"layout/.incoming-{name}").symlink_to("../precious")
    run("copy", f"{here.host}/app:1", "oci:layout:again")
    assert Path("precious").read_text() == "precious"
    assert not Path(f"layout/{name}").is_symlink()


def test_a_layout_whose_first_writer_was_killed_is_written_to(run: Run, places: tuple[Place, Place]) -> None:
    here, _ = places
    images = Images()
    image = images.image()
    images.put(here.memory, "app", {"1": image})
    Path("layout/blobs/sha256").mkdir(parents=True)
    Path("layout/.incoming-oci-layout").write_text("{")
    assert run("copy", f"{here.host}/app:1", "oci:layout:app").strip() == image["digest"]
    Path("other").mkdir()
    Path("other/file").write_text("of somebody")
    with pytest.raises(ArchiveError, match="not an OCI image layout"):
        run("copy", f"{here.host}/app:1", "oci:other:app")


@pytest.mark.parametrize("data", [b"layer", b"[]", b"{}", b"\xff", b'{"schemaVersion":2,"mediaType":[]}'])
def test_a_digest_in_a_layout_that_is_no_image_is_refused(run: Run, tmp_path: Path, data: bytes) -> None:
    images = Images()
    blob = images.blob(LAYER, data)
    images.layout(tmp_path / "layout", {"app": images.image()})
    with pytest.raises(ArchiveError, match="is no image"):
        run("index", "inspect", f"oci-layout://layout@{blob['digest']}")


def test_an_annotation_is_not_another_name(run: Run, tmp_path: Path) -> None:
    images = Images()
    images.layout(tmp_path / "layout", {"app": images.entry()})
    with pytest.raises(UsageError, match="the name of an image in a layout"):
        run("index", "create", "-t", "oci:to:1", "oci:layout:app", "--annotation", f"index-descriptor:{REF_NAME}=other")


# -- what an index hides


@pytest.mark.parametrize("about", ["itself", "another"])
def test_no_annotation_hides_an_image_from_inspection(run: Run, places: tuple[Place, Place], about: str) -> None:
    here, _ = places
    images = Images()
    image, hidden = images.entry(), images.entry(text="hidden")
    subject = {"itself": hidden, "another": image}[about]
    hidden["annotations"] = {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": subject["digest"],
    }
    images.put(here.memory, "app", {"1": images.index([hidden, image])})
    lines = run("index", "inspect", f"{here.host}/app:1").splitlines()
    assert [line for line in lines if line.startswith("linux/amd64") and line.endswith(hidden["digest"])]
    listed = json.loads(run("index", "inspect", f"{here.host}/app:1", "--format", "json"))["manifests"]
    assert [each["digest"] for each in listed] == [hidden["digest"], image["digest"]]
    with pytest.raises(UsageError, match="two manifests for linux/amd64"):
        run("index", "create", "--dry-run", f"{here.host}/app:1", "--annotation", "a=b")


def test_attestations_that_hold_no_statement_or_are_of_one_another_are_shown(
    run: Run, places: tuple[Place, Place]
) -> None:
    here, _ = places
    images = Images()
    image = images.entry()
    entries = [images.image(text=text) for text in "abc"]
    about = [image, entries[2], entries[1]]
    for each, subject in zip(entries, about, strict=True):
        each["platform"] = {"os": "unknown", "architecture": "unknown"}
        each["annotations"] = images.attestation(subject)["annotations"]
    images.put(here.memory, "app", {"1": images.index([image, *entries])})
    listed = json.loads(run("index", "inspect", f"{here.host}/app:1", "--format", "json"))["manifests"]
    assert [each["digest"] for each in listed] == [each["digest"] for each in (image, *entries)]


def test_an_index_of_one_manifest_thousands_of_times_is_refused(run: Run, places: tuple[Place, Place]) -> None:
    here, _ = places
    images = Images()
    image = images.image()
    entries = [{**image, "platform": {"os": "linux", "architecture": f"a{number}"}} for number in range(5000)]
    images.put(here.memory, "app", {"1": images.index(entries)})
    with pytest.raises(ArchiveError, match="too large"):
        run("index", "create", "--dry-run", f"{here.host}/app:1", "--annotation", "a=b")


# -- mirrors, lists of referrers and what is kept meanwhile


def test_what_a_mirror_alone_has_is_pushed_before_a_tag_means_it(run: Run, places: tuple[Place, Place]) -> None:
    here, mirror = places
    images = Images()
    root = images.index([images.entry()])
    images.put(mirror.memory, "app", {"1": root})
    run(
        *("index", "create", "-t", f"{here.host}/app:2", f"{here.host}/app:1"),
        *("--registry-mirror", f"{here.host}=http://{mirror.host}"),
    )
    there = {name for place, name in (*here.memory.manifests, *here.memory.blobs) if place == "app"}
    assert there == {*images.blobs, "2"}


def test_a_list_of_referrers_that_others_write_meanwhile_keeps_all_of_them(
    run: Run, places: tuple[Place, Place]
) -> None:
    here, there = places
    images = Images()
    image = images.entry()
    ours, theirs = images.signature(image, "ours"), images.signature(image, "theirs")
    images.put(here.memory, "app", {"1": image})
    here.memory.lists_referrers = True
    tag = image["digest"].replace(":", "-")
    written = []

    def meanwhile(asked: Asked) -> object:
        if asked.method == "PUT" and asked.path.endswith(tag):
            written.append(asked.path)
            if len(written) < 3:  # theirs comes right after ours, each time
                other = {
                    "schemaVersion": 2,
                    "mediaType": INDEX,
                    "manifests": [theirs],
                    "annotations": {"n": str(len(written))},
                }
                there.memory.add_manifest("app", tag, INDEX, json.dumps(other).encode())
                return Said(201, {"Docker-Content-Digest": digest_of(asked.body)})
        return ...

    here.memory.manifests.pop(("app", theirs["digest"]))
    there.memory.fault = meanwhile
    run("copy", f"{here.host}/app:1", f"{there.host}/app:1")
    document = json.loads(there.memory.manifests["app", tag][1])
    assert {each["digest"] for each in document["manifests"]} == {ours["digest"], theirs["digest"]}
    assert document["annotations"] == {"n": "2"}


def test_a_registry_that_shows_a_list_of_referrers_late_is_believed(run: Run, places: tuple[Place, Place]) -> None:
    here, there = places
    images = Images()
    image = images.entry()
    images.signature(image)
    images.put(here.memory, "app", {"1": image})
    here.memory.lists_referrers = True
    tag = image["digest"].replace(":", "-")
    there.memory.fault = lambda asked: (
        error(404, "MANIFEST_UNKNOWN", "not yet") if asked.method == "GET" and asked.path.endswith(tag) else ...
    )
    assert run("copy", f"{here.host}/app:1", f"{there.host}/app:1").strip() == image["digest"]
    assert ("app", tag) in there.memory.manifests


def test_an_image_where_referrers_are_listed_is_not_replaced(run: Run, places: tuple[Place, Place]) -> None:
    here, there = places
    images, root = signed()
    images.put(here.memory, "app", {"1": root})
    here.memory.lists_referrers = True
    tag = root["digest"].replace(":", "-")
    images.put(there.memory, "app", {tag: images.image()})
    before = there.digest("app", tag)
    with pytest.raises(RegistryError, match="there is an image where referrers are listed"):
        run("copy", f"{here.host}/app:1", f"{there.host}/app:1")
    assert there.digest("app", tag) == before


def test_referrers_are_not_read_beyond_what_is_allowed(
    run: Run, places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = places
    images = Images()
    image = images.image()
    for number in range(200):
        images.signature(image, str(number))
    images.put(here.memory, "app", {"1": image})
    listed = [{**each, "mediaType": MANIFEST} for each in referrers_of(images, image)]
    page = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}).encode()
    here.memory.fault = lambda asked: Said(200, {"Content-Type": INDEX}, page) if "/referrers/" in asked.path else ...
    monkeypatch.setattr(manifest_graph, "DOCUMENT_BYTES", 5000)
    with pytest.raises(ArchiveError, match="more than 5000 bytes"):
        run("index", "inspect", f"{here.host}/app:1")
    assert len(here.server.seen("GET", "/manifests/")) < 100


def referrers_of(images: Images, image: Document) -> list[Document]:
    return [
        {"mediaType": MANIFEST, "digest": digest, "size": len(images.blobs[digest])}
        for digest in images.types
        if json.loads(images.blobs[digest]).get("subject", {}).get("digest") == image["digest"]
    ]


def test_no_blob_is_left_behind_by_a_copy_that_is_killed(
    run: Run, places: tuple[Place, Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = places
    images = Images()
    root = images.image()
    images.put(here.memory, "app", {"1": root})
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spool))
    seen: list[list[Path]] = []

    def uploading(asked: Asked) -> object:
        if asked.method in ("PATCH", "PUT") and "/blobs/uploads/" in asked.path:
            seen.append(list(spool.iterdir()))
            if len(seen) == 1:
                return None  # so that it is sent again
        return ...

    there.memory.fault = uploading
    assert run("copy", f"{here.host}/app:1", f"{there.host}/app:1").strip() == root["digest"]
    assert len(seen) > 1
    assert not any(seen)


# -- metadata


def test_metadata_that_names_two_images_is_refused(run: Run) -> None:
    images = Images()
    one, other = images.image(), images.image(text="other")
    Path("m.json").write_text(
        json.dumps({"containerimage.digest": one["digest"], "containerimage.descriptor": other, "image.name": "x/y"})
    )
    with pytest.raises(UsageError, match="names two images"):
        run("index", "create", "--dry-run", "--metadata", "m.json")


def test_a_directory_of_metadata_that_cannot_be_read_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    Path("metadata").mkdir()
    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(UsageError, match="cannot read metadata"):
        run("index", "create", "--dry-run", "--metadata", "metadata")


def test_an_annotation_adds_no_line_to_a_template(run: Run, places: tuple[Place, Place]) -> None:
    here, _ = places
    images = Images()
    entry = images.entry(annotations={"a": "b\nlinux/arm64  1 B  1  sha256:0"})
    images.put(here.memory, "app", {"1": images.index([entry])})
    shown = run("index", "inspect", f"{here.host}/app:1", "--format", "{{.Manifest}}").rstrip("\n")
    assert shown.splitlines() == run("index", "inspect", f"{here.host}/app:1").splitlines()
    assert not [line for line in shown.splitlines() if line.startswith("linux/arm64")]


def test_one_manifest_for_two_platforms_is_edited_for_one(run: Run, places: tuple[Place, Place]) -> None:
    here, _ = places
    images = Images()
    newer = images.entry("linux/arm/v7")
    older = {**newer, "platform": {"os": "linux", "architecture": "arm", "variant": "v6"}}
    images.put(here.memory, "app", {"1": images.index([newer, images.entry("linux/arm64"), older])})
    name, words = f"{here.host}/app:1", ("linux/arm/v6", "--dry-run")
    left = json.loads(run("index", "remove", name, *words))["manifests"]
    assert [each["platform"].get("variant", "") for each in left] == ["v7", ""]
    marked = json.loads(run("index", "annotate", name, *words, "--annotation", "old=yes"))["manifests"]
    assert [each.get("annotations") for each in marked] == [None, None, {"old": "yes"}]


def test_a_referrer_of_an_unknown_kind_is_named_with_what_leaves_it_out(run: Run, places: tuple[Place, Place]) -> None:
    here, there = places
    images = Images()
    image = images.image()
    images.put(here.memory, "app", {"1": image})
    odd = images.blob("application/vnd.oci.artifact.manifest.v1+json", b"{}")
    page = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [odd]}).encode()
    here.memory.fault = lambda asked: Said(200, {"Content-Type": INDEX}, page) if "/referrers/" in asked.path else ...
    with pytest.raises(ArchiveError, match="neither a manifest nor an index") as caught:
        run("copy", f"{here.host}/app:1", f"{there.host}/app:1")
    assert "--no-referrers" in caught.value.problem.remedy
    assert run("copy", f"{here.host}/app:1", f"{there.host}/app:1", "--no-referrers").strip() == image["digest"]


def test_a_second_signal_does_not_wait_for_what_the_first_is_about() -> None:
    with open_display("quiet") as display, open_context(RegistrySettings(), display) as context:
        handler = signal.getsignal(signal.SIGTERM)
        assert callable(handler)
        with context.cancelled._cond:  # type: ignore[attr-defined]  # which is held for a moment while the event is set
            second = threading.Thread(target=handler, args=(signal.SIGTERM, None), daemon=True)
            second.start()
            second.join(5)
            assert not second.is_alive()
        assert context.cancelled.wait(5)
