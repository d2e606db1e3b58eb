"""The pieces for Tekton, Argo Workflows, Cloud Build and Jenkins: their schemas, and their scripts, run here.

None of these systems is here. The schemas are their own; what a step or a container would run is run by this machine's
shell, with the values that the system would put into its environment, in jobs with stores of their own.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import judges
import pytest
import yaml
from conftest import Base, Kanifold
from jsonschema import Draft202012Validator
from programs import program

CI = Path(__file__).resolve().parents[2] / "ci"
EPOCH = "1700000000"


class Machine:
    """This machine in place of the containers of a cluster: a job shares no files with another one."""

    def __init__(self, folder: Path, kanifold: Kanifold) -> None:
        self._folder, self._kanifold = folder, kanifold
        self.context = folder / "context"
        self.context.mkdir()
        words = " ".join(f"'{each}'" for each in kanifold.command)
        program(folder / "bin", "kanifold", f'KANIFOLD_ROOT="$(mktemp -d {folder}/store-XXXXXX)" exec {words} "$@"')

    def scratch(self, name: str) -> Path:
        """A directory in place of a container's /tmp."""
        made = self._folder / name
        made.mkdir()
        return made

    def run(self, words: Sequence[str], where: Path, **environment: str) -> str:
        """Run a command in the directory ``where``, and return what it prints."""
        path = f"{self._folder / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            list(words), cwd=where, text=True, capture_output=True, check=False,
            env=self._kanifold.environment(PATH=path, SOURCE_DATE_EPOCH=EPOCH, **environment),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def machine(tmp_path: Path, kanifold: Kanifold, busybox: Base) -> Machine:
    made = Machine(tmp_path, kanifold)
    (made.context / "Dockerfile").write_text(f"FROM {busybox.ref}\nCOPY greeting /\nRUN arch > /arch\n")
    (made.context / "greeting").write_text("hello")
    return made


def check(machine: Machine, name: str, kanifold: Kanifold, platforms: str = "linux/amd64,linux/arm64") -> str:
    """The index ``name`` is that of one build; returns its digest."""
    words = ("build", machine.context, "--platform", platforms, "-t", f"{name}-whole", "--push")
    digest = kanifold(*words, SOURCE_DATE_EPOCH=EPOCH).out.strip()
    raw = [kanifold("index", "inspect", "--raw", each).out for each in (name, f"{name}-whole")]
    assert raw[0] == raw[1], "byte by byte"
    return digest


# -- schemas


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a resource without unknown fields, as an API server refuses them with strict validation."""
    made = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if isinstance(made.get("properties"), dict):
        made["properties"] = {name: strict(each) for name, each in made["properties"].items()}
        if "additionalProperties" not in made and not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = strict(made[key])
    if schema.get("x-kubernetes-int-or-string"):
        made = {"type": ["integer", "string"]}
    return made


@pytest.mark.parametrize(
    ("piece", "schemas", "version"),
    [
        ("tekton/task.yaml", "300-task.yaml", "v1"),
        ("argo/workflow-template.yaml", "argoproj.io_workflowtemplates.yaml", "v1alpha1"),
    ],
)
def test_resources_are_what_their_schemas_say(piece: str, schemas: str, version: str) -> None:
    if not (judges.CACHE / "crds" / schemas).exists():
        pytest.skip(f"no {schemas}: ci/judges downloads it")
    definition = yaml.load((judges.CACHE / "crds" / schemas).read_text(), Loader=yaml.CSafeLoader)
    resource = yaml.safe_load((CI / piece).read_text())
    assert resource["kind"] == definition["spec"]["names"]["kind"]
    (schema,) = [
        each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["name"] == version
    ]
    schema["properties"]["metadata"] = {"type": "object", "additionalProperties": True, "properties": {}}
    found = Draft202012Validator(strict(schema))
    assert [each.message for each in found.iter_errors(resource)] == []
    resource["spec"]["unknwon"] = 1
    assert not found.is_valid(resource)


# -- Tekton


def filled(text: str, values: Mapping[str, str]) -> str:
    """``text`` with the values of ``$(…)``; each is known."""
    return re.sub(r"\$\(([\w.*\[\]-]+)\)", lambda match: values[match[1]], text)


def test_the_task_builds_and_says_what_it_pushed(machine: Machine, registry: str, kanifold: Kanifold) -> None:
    task = yaml.safe_load((CI / "tekton" / "task.yaml").read_text())["spec"]
    (step,) = task["steps"]
    name = f"{registry}/e2e/tekton:1"
    scratch = machine.scratch("tekton")
    arrays = {"params.platforms[*]": ["linux/amd64", "linux/arm64"], "params.args[*]": ["--label=a=b c", "--jobs=2"]}
    values = {
        "params.image": name, "params.context": str(machine.context), "params.nodes": "",
        "workspaces.dockerconfig.path": "",
        "workspaces.store.path": str(scratch), "results.IMAGE_DIGEST.path": str(scratch / "DIGEST"),
        "results.IMAGE_URL.path": str(scratch / "URL"),
    }  # fmt: skip
    assert {f"params.{each['name']}" for each in task["params"]} <= {
        *values, *(each.removesuffix("[*]") for each in arrays), "params.builder-image"
    }  # fmt: skip
    words = [word for each in step["args"] for word in arrays.get(each[2:-1], [each])]
    environment = {each["name"]: filled(each["value"], values) for each in step["env"]}
    script = program(scratch, "script", step["script"].replace("/tmp/", f"{scratch}/"))
    machine.run([str(script), *words], scratch, **environment)
    assert (scratch / "URL").read_text() == name
    shown = json.loads(kanifold("index", "inspect", "--format", "json", name).out)
    assert (scratch / "DIGEST").read_text() == shown["digest"]
    assert [each["platform"] for each in shown["manifests"]] == ["linux/amd64", "linux/arm64"]


# -- Argo


def test_the_workflow_makes_the_index_of_one_build(machine: Machine, registry: str, kanifold: Kanifold) -> None:
    spec = yaml.safe_load((CI / "argo" / "workflow-template.yaml").read_text())["spec"]
    templates = {each["name"]: each for each in spec["templates"]}
    name = f"{registry}/e2e/argo:1"
    given = {each["name"]: each.get("value", "") for each in spec["arguments"]["parameters"]}
    given |= {"image": name, "context": str(machine.context)}

    def run(template: str, inputs: Mapping[str, str]) -> str:
        """Run the container of a template; returns the value of its only output."""
        values = {f"workflow.parameters.{key}": value for key, value in given.items()}
        values |= {f"inputs.parameters.{key}": value for key, value in inputs.items()}
        wanted = {each["name"] for each in templates[template]["inputs"]["parameters"]}
        assert wanted == set(inputs)
        container, scratch = templates[template]["container"], machine.scratch(f"{template}-{len(os.listdir(root))}")
        environment = {
            each["name"]: re.sub(r"{{([\w.]+)}}", lambda match: values[match[1]], each["value"])
            for each in container["env"]
        }
        words = [each.replace("/tmp/", f"{scratch}/") for each in (*container["command"], *container["args"])]
        machine.run(words, scratch, **environment)
        (output,) = templates[template]["outputs"]["parameters"]
        return (scratch / Path(output["valueFrom"]["path"]).name).read_text()

    root = machine.context.parent
    build, index = templates["image"]["dag"]["tasks"]
    assert (build["withParam"], index["depends"]) == ("{{workflow.parameters.platforms}}", "build")
    metadata = [
        run("build", {"platform": each["platform"], "node": each["node"]}) for each in json.loads(given["platforms"])
    ]
    digest = run("index", {"metadata": json.dumps(metadata)})
    assert digest.strip() == check(machine, name, kanifold)


# -- Cloud Build


def test_cloud_build_builds_all_platforms(machine: Machine, registry: str, kanifold: Kanifold) -> None:
    build = yaml.safe_load((CI / "cloud-build" / "cloudbuild.yaml").read_text())
    (step,) = build["steps"]
    name = f"{registry}/e2e/cloud-build:1"
    assert build["options"]["automapSubstitutions"], "which makes variables of them"
    values = {**build["substitutions"], "_TAG": name, "_ARGS": "--jobs=2 --keep-going"}
    assert set(re.findall(r"\$(_\w+)", json.dumps(step))) == set(values)
    script = program(machine.scratch("cloud-build"), "script", "")
    script.write_text(step["script"])
    machine.run([str(script)], machine.context, **values)
    (machine.context / "metadata.json").unlink()
    check(machine, name, kanifold)


# -- Jenkins


def test_the_jenkinsfile_leaves_no_credentials_in_the_log_or_on_the_agent(tmp_path: Path) -> None:
    text = (CI / "jenkins" / "Jenkinsfile").read_text()
    program(tmp_path / "bin", "kanifold", f'cat "$DOCKER_CONFIG/config.json" > "{tmp_path}/seen"')
    encoded = base64.b64encode(b"me:a:b$c").decode()
    for number, script in enumerate(re.findall(r"sh '''(.*?)'''", text, re.S)):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        environment = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "REGISTRY": "r.example", "TAG": "r.example/a",
            "PLATFORMS": "linux/amd64", "ARCHITECTURE": "amd64", "USERNAME": "me", "PASSWORD": "a:b$c",
            "WORKSPACE_TMP": str(scratch),
        }  # fmt: skip
        traced = subprocess.run(
            ["sh", "-xe", "-c", script.replace("\\\\", "\\")], cwd=tmp_path, env=environment, check=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        seen = tmp_path / "seen"
        assert json.loads(seen.read_text()) == {"auths": {"r.example": {"auth": encoded}}}
        seen.unlink()
        assert encoded not in traced.stdout
        assert "a:b$c" not in traced.stdout
        assert list(scratch.iterdir()) == []


def test_the_jenkinsfile_makes_the_index_of_one_build(machine: Machine, registry: str, kanifold: Kanifold) -> None:
    text = (CI / "jenkins" / "Jenkinsfile").read_text()
    assert text.count("{") == text.count("}")
    build, index = (each.replace("\\\\", "\\") for each in re.findall(r"sh '''(.*?)'''", text, re.S))
    name = f"{registry}/e2e/jenkins:1"
    variables = {
        "REGISTRY": registry, "TAG": name, "PLATFORMS": "linux/amd64,linux/arm64", "USERNAME": "me",
        "PASSWORD": "a:b$c",
    }  # fmt: skip
    (values,) = re.findall(r"values (.*)", text)
    for architecture in re.findall(r"'(\w+)'", values):
        scratch = machine.scratch(architecture)
        more = {"ARCHITECTURE": architecture, "WORKSPACE_TMP": str(scratch)}
        machine.run(["sh", "-xe", "-c", build], machine.context, **variables, **more)
        assert (machine.context / f"kanifold-{architecture}.xml").exists()
        (machine.context / f"kanifold-{architecture}.xml").unlink()
    joined = machine.scratch("joined")
    (machine.context / "kanifold-metadata").rename(joined / "kanifold-metadata")
    machine.run(["sh", "-xe", "-c", index], joined, **variables, WORKSPACE_TMP=str(joined))
    check(machine, name, kanifold)
