"""A survey by the workers of a Dask cluster: real ones, a scheduler and two."""

import contextlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support.chains import plain_chain
from tests.support.children import wait_for_children

from chainlift.errors import InputError, OperationError
from chainlift.results.survey.records import Chain, End, Place, Trouble
from chainlift.survey.fleet import Where, survey_fleet

pytestmark = pytest.mark.needs("fleet")


@contextlib.contextmanager
def process(*words, says):
    """Start a part of a cluster; yields it, and what it said that matches when it was ready."""
    with contextlib.ExitStack() as stack:
        started = subprocess.Popen(
            [sys.executable, "-m", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "DASK_DISTRIBUTED__WORKER__DAEMON": "False"},
        )  # fmt: skip
        stack.callback(started.wait)
        stack.callback(started.kill)
        lines = []
        for line in started.stderr:
            lines.append(line)
            if found := re.search(says, line):
                yield started, found
                return
        pytest.fail("".join(lines))


@pytest.fixture(scope="module")
def scheduler():
    words = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"]
    with process(*words, says=r"Scheduler at:\s+(tcp://\S+)") as (_, found):
        yield found[1]


@contextlib.contextmanager
def worker(scheduler, host, directory):
    words = ["distributed.cli.dask_worker", scheduler, "--host", "127.0.0.1", "--no-nanny", "--no-dashboard"]
    words += ["--nthreads", "1", "--resources", f"{host}=1", "--local-directory", str(directory)]
    with process(*words, says="Starting established connection") as (started, _):
        yield started


@pytest.fixture(scope="module")
def workers(scheduler, tmp_path_factory):
    with (
        worker(scheduler, "hostA", tmp_path_factory.mktemp("a")),
        worker(scheduler, "hostB", tmp_path_factory.mktemp("b")),
    ):
        yield


def look(scheduler, *places, patience_s=1.0, done=None):
    places = [Where.parse(str(place)) for place in places]
    options = ["--no-libvirt", "--jobs", "1"]
    return list(survey_fleet(scheduler, places, options, patience_s=patience_s, done=done))


def of(kind, records):
    return [record for record in records if isinstance(record, kind)]


def test_each_host_looks_at_its_own(scheduler, workers, tmp_path):
    plain_chain(tmp_path / "a", 2)
    plain_chain(tmp_path / "b", 3)
    plain_chain(tmp_path / "any", 4)
    records = look(scheduler, f"hostA:{tmp_path}/a", f"hostB:{tmp_path}/b", f"{tmp_path}/any")
    assert sorted(chain.length for chain in of(Chain, records)) == [2, 3, 4]
    assert {place.asked.host for place in of(Place, records)} == {"hostA", "hostB", "*"}
    (end,) = of(End, records)
    assert (end.chains, end.images, end.left_out) == (3, 12, 0)
    # What an interrupted survey has been through is not asked for again.
    done = {place.asked: place for place in of(Place, records)}
    assert [type(record) for record in look("nowhere", f"{tmp_path}/any", done=done)] == [End]


def test_what_no_worker_can_look_at_is_left_out_and_the_rest_is_not(scheduler, workers, tmp_path):
    plain_chain(tmp_path / "a", 2)
    records = look(scheduler, f"hostA:{tmp_path}/a", f"hostC:{tmp_path}/a", f"hostB:{tmp_path}/gone")
    assert len(of(Chain, records)) == 1
    what = {trouble.host: trouble.what for trouble in of(Trouble, records)}
    assert what.pop("hostC") == "no worker with the resource hostC is there"
    assert list(what.values()) == ["cannot be searched: No such file or directory"]
    assert of(End, records)[0].left_out == 2


def test_a_worker_that_dies_is_replaced_by_another(scheduler, tmp_path):
    plain_chain(tmp_path / "c", 2)
    with worker(scheduler, "hostD", tmp_path / "1") as first:
        records = survey_fleet(scheduler, [Where.parse(f"hostD:{tmp_path}/c")], ["--no-libvirt"], patience_s=60)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(list, records)
            wait_for_children(first.pid)
            first.kill()
            first.wait()
            with worker(scheduler, "hostD", tmp_path / "2"):
                found = answer.result(timeout=120)
    assert [type(record) for record in found] == [Chain, Place, End]


def test_a_scheduler_that_does_not_answer(monkeypatch, tmp_path):
    from chainlift.survey import fleet

    monkeypatch.setattr(fleet, "_CONNECT_S", 0.5)
    with pytest.raises(OperationError, match=r"the scheduler tcp://127.0.0.1:9 does not answer within 0\.5 s"):
        look("tcp://127.0.0.1:9", tmp_path)
    with pytest.raises(OperationError, match="the scheduler nonsense://x is no address"):
        look("nonsense://x", tmp_path)


def test_a_name_of_a_place():
    assert Where.parse("hostA:/srv/a:b") == Where("hostA", "/srv/a:b")
    assert Where.parse("/srv/a:b") == Where("", "/srv/a:b")
    for text in ("srv", "hostA:srv", "hostA:"):
        with pytest.raises(InputError, match="is no absolute path"):
            Where.parse(text)


def test_by_the_command(scheduler, workers, tmp_path):
    plain_chain(tmp_path / "a", 9)
    words = ["--scheduler", scheduler, f"hostA:{tmp_path}/a", "--json", f"{tmp_path}/s.jsonl", "--no-libvirt"]
    command = [sys.executable, "-m", "chainlift", "survey", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"chainlift index {tmp_path}/a/layer9.qcow2" in done.stdout
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert kinds == ["survey", "chain", "place", "end"]
