"""What an orchestrator asks of a cluster's API, and what becomes of its Jobs when it is killed."""

from __future__ import annotations

from collections import Counter

import pytest
from cluster import until
from cluster_builds import Farm
from cluster_gate import Gate, building, ended

pytestmark = pytest.mark.slow


def asked(farm: Farm) -> Counter[str]:
    """Return the requests of kanifold in the namespace, as the API server has recorded them: verbs and resources.

    A stream is recorded when it has ended.
    """
    found: Counter[str] = Counter()
    for each in farm.cluster.audit():
        what = each.get("objectRef", {})
        if each.get("userAgent") == "kanifold" and what.get("namespace") == farm.namespace:
            subresource = f"/{what['subresource']}" if "subresource" in what else ""
            found[f"{each['verb']} {what['resource']}{subresource}"] += 1
    return found


def streams(found: Counter[str]) -> int:
    return found["get pods/exec"] + found["create pods/exec"]


@pytest.mark.parametrize("count", [2, 8])
def test_all_executors_are_watched_by_one_watch(farm: Farm, count: int) -> None:
    """And nothing is asked for again and again: only what is made and deleted is a request for each."""
    (farm.kanifold.home / "Dockerfile").write_text(f"FROM {farm.base}\nARG number\nRUN echo $number\n")
    (farm.kanifold.home / "kanifold.yaml").write_text(
        "platforms: [linux/amd64, linux/arm64]\nimages:\n  web:\n    context: .\n"
        f'    matrix: {{number: [{", ".join(map(str, range(count // 2)))}]}}\n    args: {{number: "${{number}}"}}\n'
    )
    done = farm.kanifold.run("release", "--progress=plain", "--node", farm.node())
    assert done.code == 0, done.said
    until(lambda: streams(asked(farm)) >= count, 30, "all streams are recorded, more if one is cut")
    found = asked(farm)
    assert found["watch pods"] <= 2, "one, which the API ends after a while"
    assert found["watch events"] <= 2
    assert found["list pods"] == found["list events"] == 1
    assert found["create jobs"] == found["delete jobs"] == count
    assert set(found) <= {
        "watch pods", "watch events", "list pods", "list events", "create jobs", "delete jobs", "get pods/exec",
        "create pods/exec",
    }  # fmt: skip


def test_the_same_build_takes_over_the_job_of_one_that_was_killed(farm: Farm, gate: Gate) -> None:
    with building(farm, gate) as process:
        (pod,) = farm.pods()
        process.kill()
        process.communicate()
        with building(farm, gate) as again:
            assert [each["metadata"]["uid"] for each in farm.pods()] == [pod["metadata"]["uid"]]
            gate.open()
            status, said = ended(again)
    assert status == 0, said
    assert gate.begun == 2
    farm.assert_nothing_is_left()


def test_another_build_does_not_take_it_over(farm: Farm, gate: Gate) -> None:
    with building(farm, gate) as process:
        (pod,) = farm.pods()
        process.kill()
        process.communicate()
        with building(farm, gate, name="another") as again:
            assert len(farm.pods()) == 2
            gate.open()
            status, said = ended(again)
    assert status == 0, said
    assert pod["metadata"]["uid"] in [each["metadata"]["uid"] for each in farm.pods()]


def test_the_same_build_at_the_same_time_has_jobs_of_its_own(farm: Farm, gate: Gate) -> None:
    with building(farm, gate) as first, building(farm, gate) as second:
        assert len(farm.pods()) == 2
        gate.open()
        for each in (first, second):
            status, said = ended(each)
            assert status == 0, said
    farm.assert_nothing_is_left()


def test_jobs_of_an_orchestrator_that_was_killed_end_and_expire(farm: Farm, gate: Gate) -> None:
    with building(farm, gate, ttl="1s") as process:
        process.kill()
        until(lambda: not farm.jobs(), 120, "the Job expires")
    farm.assert_nothing_is_left()
