"""An executor that violates ``executor.protocol``, written with the standard library alone.

``python lying_executor.py BEHAVIOUR [DETAIL]``: each behaviour is a function below. ``honest`` makes an empty image and
serves it correctly, so that a test can tell a rejected lie from a harness that rejects everything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
STRANGE = "sha256:" + "5" * 64


def write(raw: bytes) -> None:
    sys.stdout.buffer.write(raw)
    sys.stdout.buffer.flush()


def say(type_: str, **fields: Any) -> None:
    write(json.dumps({"type": type_, **fields}).encode() + b"\n")


def hear() -> dict[str, Any]:
    message: dict[str, Any] = {"type": "ping"}
    while message["type"] == "ping":
        line = sys.stdin.buffer.readline()
        if not line:
            sys.exit(0)
        message = json.loads(line)
    message["payload"] = sys.stdin.buffer.read(message.get("size", 0))
    return message


def hello(version: int | None = None) -> None:
    spoken = int(os.environ["KANIFOLD_TEST_PROTOCOL"]) if version is None else version
    say(
        "hello",
        version=spoken,
        kanifold="0",
        host=os.environ.get("KANIFOLD_TEST_HOST", "linux/amd64"),
        isolation="namespaces",
    )


def descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"media_type": media_type, "digest": "sha256:" + hashlib.sha256(data).hexdigest(), "size": len(data)}


def spelled(found: dict[str, Any]) -> dict[str, Any]:
    return {"mediaType": found["media_type"], "digest": found["digest"], "size": found["size"]}


class Image:
    """An image without layers for ``platform``; ``manifest`` replaces fields of its manifest."""

    def __init__(self, platform: str, **manifest: Any) -> None:
        system, architecture, *variant = platform.split("/")
        config = {
            "os": system, "architecture": architecture, "config": {}, "rootfs": {"type": "layers", "diff_ids": []},
        }  # fmt: skip
        if variant:
            config["variant"] = variant[0]
        self.config_data = json.dumps(config).encode()
        self.config = descriptor(CONFIG, self.config_data)
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": spelled(self.config), "layers": []}
        self.manifest_data = json.dumps({**document, **manifest}).encode()
        self.manifest = descriptor(MANIFEST, self.manifest_data)

    def announce(self, **changed: Any) -> None:
        result = {"manifest": self.manifest, "config": self.config, "layers": [], "size": 1}
        say("result", **{**result, **changed})

    def serve(self, change: Callable[[str, bytes], tuple[dict[str, Any], bytes]] | None = None) -> None:
        """Answer every fetch; ``change`` returns what is sent instead."""
        held = {self.manifest["digest"]: self.manifest_data, self.config["digest"]: self.config_data}
        while (message := hear())["type"] == "fetch":
            data = held.get(message["digest"], b"")
            header, data = (change or truth)(message["digest"], data)
            say("blob", **header)
            write(data)


def truth(digest: str, data: bytes) -> tuple[dict[str, Any], bytes]:
    return {"digest": digest, "size": len(data)}, data


# -- behaviours -----------------------------------------------------------------------------------------------------


def honest(platform: str) -> None:
    image = Image(platform)
    image.announce()
    image.serve()


def chatty(platform: str) -> None:
    """Correct, but with meaningless step events."""
    say("finished", step=7, seconds=-1e300)
    say("planned", steps=[{"id": 1, "stage": "\x1b]0;x\x07", "name": "\x1b[2J" * 100, "number": 9, "of": -1}])
    say("planned", steps=[])
    for number in range(5000):
        say("log", step=number % 3, text="\x1b[31mline\r\n" + "x" * 50, stream=number)
        say("moved", action="pull" if number % 2 else "push", name="../" * 3, done=-number, total=1)
    say("started", step=-5)
    say("finished", step=1, error="\x1b[0m")
    image = Image(platform)
    image.announce(findings=[{"layer": "../x", "path": "../../\x1b[2J", "machine": "\n\n"}])
    image.serve()


def junk_first(_platform: str) -> None:
    write(b"Welcome to node 7!\n")
    hear_the_end()


def junk_later(_platform: str) -> None:
    write(b"\xff\xfe{]\n")
    hear_the_end()


def unknown_message(_platform: str) -> None:
    say("reboot")
    hear_the_end()


def wrong_types(_platform: str) -> None:
    say("log", step="one", text=7)
    hear_the_end()


def endless_line(_platform: str) -> None:
    while True:
        write(b"x" * (1 << 20))


def wrong_version(_platform: str) -> None:
    hello(99)
    hear_the_end()


def result_first(platform: str) -> None:
    Image(platform).announce()
    hear_the_end()


def blob_unasked(_platform: str) -> None:
    say("blob", digest=STRANGE, size=3)
    write(b"abc")
    hear_the_end()


def dies_at_once(_platform: str) -> None:
    sys.exit(7)


def dies_later(_platform: str) -> None:
    print("node 7 caught fire", file=sys.stderr)
    sys.exit(3)


def dies_in_a_line(_platform: str) -> None:
    write(b'{"type": "log", "step": 1, "text": "half a')


def killed(_platform: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cache_blob_unasked(_platform: str) -> None:
    """A layer for a cache that the job does not export to."""
    say("cache-blob", name="stages on node elsewhere", digest=STRANGE, size=4)
    write(b"evil")
    hear_the_end()


def negative_cache_blob(_platform: str) -> None:
    say("cache-blob", name="", digest=STRANGE, size=-1)
    hear_the_end()


def asks_for_files_above(_platform: str) -> None:
    """A pattern that leads out of the context; its error has the answer."""
    pattern = base64.b64encode(b"/../../etc/passwd").decode()
    say("ask", id=1, question={"what": "context", "name": "", "patterns": [{"path": pattern}]})
    answer = hear()
    what = "told" if answer["payload"] or not answer.get("error") else "told nothing"
    say("failed", problem={"kind": "BuildError", "what": what})


def asks_for_anything(_platform: str) -> None:
    """Its error contains everything that it was told."""
    unknown = "0" * 64
    wanted: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("manifest", "bank.example/x:1", {}), ("secret", "never-given", {}), ("secret", "../../etc/passwd", {}),
        ("context", "never-given", {"patterns": []}), ("context", "../..", {"patterns": []}),
        ("context-parts", "", {"listing": unknown, "parts": [0]}),
        ("context-files", "", {"listing": unknown, "picked": [[0, "/w=="]]}),
        ("token", "bank.example", {"repository": "x", "scopes": ["repository:x:pull"]}),
        ("ssh", "default", {}), ("ssh", "x", {}),
    )  # fmt: skip
    told = []
    for number, (what, name, more) in enumerate(wanted):
        say("ask", id=number, question={"what": what, "name": name, **more})
    for _ in wanted:
        answer = hear()
        told.append((answer["id"], answer.get("missing", False), bool(answer.get("error")), len(answer["payload"])))
    say("failed", problem={"kind": "BuildError", "what": json.dumps(sorted(told))})


def asks_without_end(_platform: str) -> None:
    """Requests without reading the answers."""
    while True:
        say("ask", id=1, question={"what": "secret", "name": "s"})


def asks_something_unknown(_platform: str) -> None:
    say("ask", id=1, question={"what": "passwd", "name": ""})
    hear_the_end()


def malformed_message_to_an_agent(_platform: str) -> None:
    say("ask", id=1, question={"what": "ssh", "name": "default", "message": "!!"})
    hear_the_end()


def moves_what_cannot_move(_platform: str) -> None:
    say("moved", action="\x1b[1m", name="x", done=1)
    hear_the_end()


def other_manifest(platform: str) -> None:
    image = Image(platform)
    image.announce()
    image.serve(lambda digest, data: truth(digest, data[::-1] if digest == image.manifest["digest"] else data))


def other_config(platform: str) -> None:
    image = Image(platform)
    image.announce()
    image.serve(lambda digest, data: truth(digest, data[::-1] if digest == image.config["digest"] else data))


def other_platform(platform: str) -> None:
    image = Image("linux/s390x" if platform != "linux/s390x" else "linux/amd64")
    image.announce()
    image.serve()


def an_index(platform: str) -> None:
    image = Image(platform)
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    image.manifest_data = json.dumps(document).encode()
    image.manifest = descriptor(INDEX, image.manifest_data)
    image.announce()
    image.serve()


def two_kinds_at_once(platform: str) -> None:
    """CVE-2021-41190: a manifest that is an index as well."""
    image = Image(platform, manifests=[])
    image.announce()
    image.serve()


def untold_layer(platform: str) -> None:
    """The manifest has a layer that the result does not have."""
    image = Image(platform, layers=[{"mediaType": LAYER, "digest": STRANGE, "size": 10}])
    image.announce()
    image.serve()


def path_as_manifest(platform: str) -> None:
    image = Image(platform)
    image.announce(manifest={**image.manifest, "digest": "sha256:../../../../escaped"})
    image.serve()


def path_as_layer(platform: str) -> None:
    image = Image(platform)
    image.announce(layers=[{"media_type": LAYER, "digest": "../../../../escaped", "size": 4}])
    image.serve(lambda digest, data: truth(digest, data or b"evil"))


def endless_layer(platform: str) -> None:
    """A layer that continues after its end."""
    image = Image(platform, layers=[{"mediaType": LAYER, "digest": STRANGE, "size": 4}])
    image.announce(layers=[{"media_type": LAYER, "digest": STRANGE, "size": 4}])
    while (message := hear())["type"] == "fetch" and message["digest"] != STRANGE:
        data = image.manifest_data if message["digest"] == image.manifest["digest"] else image.config_data
        say("blob", digest=message["digest"], size=len(data))
        write(data)
    say("blob", digest=STRANGE, size=4)
    while True:
        write(b"evil" * (1 << 18))


def path_in_the_manifest(platform: str) -> None:
    image = Image(platform, layers=[{"mediaType": LAYER, "digest": "sha256:../../escaped", "size": 4}])
    image.announce()
    image.serve(lambda digest, data: truth(digest, data or b"evil"))


def files_elsewhere(platform: str) -> None:
    """The image's files as an archive whose entries leave the root: by name, by link, through a link."""
    image = Image(platform)
    image.announce()
    held = {image.manifest["digest"]: image.manifest_data, image.config["digest"]: image.config_data}
    while (message := hear())["type"] in ("fetch", "files"):
        if message["type"] == "fetch":
            header, data = truth(message["digest"], held.get(message["digest"], b""))
            say("blob", **header)
            write(data)
            continue
        for entry in ARCHIVE[sys.argv[2]]:
            say("piece", size=len(entry))
            write(entry)
        say("piece")


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """One entry of an archive."""
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size, found.mode = kind, link, 4 if kind == tarfile.REGTYPE else 0, 0o777
    return found.tobuf(tarfile.GNU_FORMAT) + (b"evil".ljust(512, b"\0") if found.size else b"")


ARCHIVE = {
    "name": (member("../escaped"), member("/../../escaped"), member("a/../../escaped")),
    "symlink": (member("up", tarfile.SYMTYPE, ".."), member("up/escaped")),
    "root": (member(".", tarfile.SYMTYPE, ".."), member("escaped")),
    "hard link": (member("mine", tarfile.LNKTYPE, "../kept"), member("mine")),
    "half": (member("a")[:700],),
    "junk": (b"no archive" * 100,),
}


def blob_cut_short(platform: str) -> None:
    image = Image(platform)
    image.announce()
    hear()
    say("blob", digest=image.manifest["digest"], size=image.manifest["size"])
    write(image.manifest_data[:10])


def deaf_to_fetches(platform: str) -> None:
    """Has made the image, and then hangs."""
    Image(platform).announce()
    while True:
        time.sleep(100)


def blob_of_another_name(platform: str) -> None:
    image = Image(platform)
    image.announce()
    image.serve(lambda _digest, data: ({"digest": STRANGE, "size": len(data)}, data))


def blob_of_another_size(platform: str) -> None:
    image = Image(platform)
    image.announce()
    image.serve(lambda digest, data: ({"digest": digest, "size": len(data) + 5}, data + b"12345"))


def negative_blob(platform: str) -> None:
    image = Image(platform)
    image.announce(config={**image.config, "size": -1})
    image.serve(lambda digest, _data: ({"digest": digest, "size": -1}, b""))


def endless_blob(platform: str) -> None:
    image = Image(platform)
    huge = 1 << 50
    image.announce(manifest={**image.manifest, "size": huge})
    message = hear()
    say("blob", digest=message["digest"], size=huge)
    while True:
        write(b"\0" * (1 << 20))


def log_in_place_of_a_blob(platform: str) -> None:
    Image(platform).announce()
    hear()
    say("log", step=1, text="no")
    hear_the_end()


def failed_without_reason(_platform: str) -> None:
    say("failed", problem={"kind": "__import__('os')", "what": ""})
    hear_the_end()


def fails(_platform: str) -> None:
    """Reports an error of the kind in the arguments."""
    say("failed", problem={"kind": sys.argv[2], "what": "it failed"})
    hear_the_end()


def deaf(_platform: str) -> None:
    """Does not read its job, and does not end when requested."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hello()
    write(b"junk\n")
    while True:
        time.sleep(100)


def screams(_platform: str) -> None:
    """Writes to stderr without end."""
    for _ in range(200):
        sys.stderr.write("aargh " * 10000)
    sys.stderr.write("the last words")
    sys.exit(4)


def waits_for_its_job(_platform: str) -> None:
    """As executors did before version 10."""
    hear()
    hello(9)


FIRST = (junk_first, wrong_version, result_first, dies_at_once, failed_without_reason, deaf, waits_for_its_job)
"""Behaviours in place of a greeting and reading the job."""


def hear_the_end() -> None:
    while sys.stdin.buffer.read(1 << 16):
        pass


def main() -> None:
    behaviour = globals()[sys.argv[1]]
    try:
        if behaviour in FIRST:
            behaviour("linux/amd64")
        else:
            hello()
            behaviour(hear()["platform"])
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
