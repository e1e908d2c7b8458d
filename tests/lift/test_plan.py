"""What `plan` says of a chain is what the lifts then do to it."""

import random
import shlex
import shutil
import subprocess

import pytest
from tests.support.chains import make_chain, plain_chain
from tests.support.lifts import lift_index, lift_squash, restore_lift
from tests.support.mounts import in_memory

from chainlift.cli.main import main
from chainlift.errors import ImageError
from chainlift.lift.at_rest import DiskAtRest
from chainlift.lift.flatten import flatten
from chainlift.lift.plan import Choice, plan, recommend
from chainlift.lift.record.lifts import lift_directory
from chainlift.qcow2.writer import write_image

pytestmark = pytest.mark.integration

MIB = 1 << 20


def plan_at_rest(image, qemu, **options):
    return plan(DiskAtRest(image, qemu), **options)


def budget_of(choice):
    """The budget in the command that the plan gives."""
    words = shlex.split(choice.command)
    return int(words[-1].removesuffix("M")) * MIB if "--copy-budget" in words else 0


def check_plan(image, qemu):
    """Compare what the plan says with what every lift of this image then says that it did."""
    choices = {choice.kind: choice for choice in plan_at_rest(image, qemu, measure=False).choices}
    for kind in ("index", "index with a budget"):
        manifest = lift_index(image, qemu, copy_budget_bytes=budget_of(choices[kind]))
        assert choices[kind].copied_bytes == manifest.copied_bytes
        assert choices[kind].files == manifest.extents + 2  # the image and the descriptor
        restore_lift(image, qemu, clean=True)
    if choices["squash"].impossible is None:
        manifest, _ = lift_squash(image, qemu)
        assert choices["squash"].copied_bytes == manifest.copied_bytes + manifest.cloned_bytes
        restore_lift(image, qemu, clean=True)
    else:
        with pytest.raises(ImageError, match="nothing between"):
            lift_squash(image, qemu)
    out = image.with_name("flat.qcow2")
    done = flatten(image, out)
    assert choices["flatten"].copied_bytes == done.copied.copied_bytes + done.copied.cloned_bytes
    out.unlink()
    return choices


@pytest.mark.parametrize("seed", [*range(15), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(15, 40))])
def test_a_plan_says_what_each_lift_copies(tmp_path, host_qemu, seed):
    check_plan(make_chain(tmp_path / "c", seed), host_qemu)


def test_a_plan_of_large_clusters_over_a_compressed_base(tmp_path, host_qemu):
    """A cloud image under layers with clusters of 2 MiB, of which each takes much of the base along in an index."""
    write_image(tmp_path / "0", virtual_size=64 * MIB, clusters=range(0, 1024, 3), compress=True,
                data=lambda c: (b"%d" % c * 65536)[:65536])  # fmt: skip
    for number in range(1, 10):
        write_image(tmp_path / str(number), virtual_size=64 * MIB, cluster_size=2 * MIB, clusters=[number, number + 1],
                    data=random.Random(number).randbytes(4 * MIB), backing_file=str(number - 1),
                    backing_format="qcow2")  # fmt: skip
    choices = check_plan(tmp_path / "9", host_qemu)
    assert choices["squash"].copied_bytes == 9 * 2 * MIB
    # Subclusters of 64 KiB: a squash of 2 MiB clusters fills them up from the base.
    for number in range(1, 4):
        write_image(tmp_path / f"small{number}", virtual_size=64 * MIB, cluster_size=65536 if number < 3 else 2 * MIB,
                    clusters=[1, 9 * number], data=random.Random(number).randbytes(131072) if number < 3 else None,
                    backing_file=f"small{number - 1}" if number > 1 else "0", backing_format="qcow2")  # fmt: skip
    write_image(tmp_path / "top", virtual_size=64 * MIB, backing_file="small3", backing_format="qcow2")
    choices = check_plan(tmp_path / "top", host_qemu)
    assert choices["squash"].copied_bytes > choices["index"].copied_bytes


def test_a_plan_changes_nothing_and_recommends(tmp_path, host_qemu, contents):
    image = plain_chain(tmp_path / "c", length=9)
    before = contents(tmp_path)
    found = plan_at_rest(image, host_qemu)
    assert contents(tmp_path) == before
    choices = {choice.kind: choice for choice in found.choices}
    assert found.length == choices["none"].depth == 9
    assert found.recommended == "squash"
    lift_squash(image, host_qemu)
    assert plan_at_rest(image, host_qemu).length == 9  # of the chain as it was before the lift


def test_the_command_of_a_plan_can_be_pasted_into_a_shell(tmp_path, monkeypatch, capsys):
    directory = tmp_path / "it's a $(place)"
    image = plain_chain(directory, length=9)
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(image)])
    assert ended.value.code == 0
    last = capsys.readouterr().out.splitlines()[-1]
    command = last.removeprefix("recommended: ").rpartition(" (")[0]
    assert shlex.split(command) == ["chainlift", "squash", str(image)]
    subprocess.run(["sh", "-c", f'set -- {command}; test "$3" = "$IMAGE"'], check=True, env={"IMAGE": str(image)})


def test_a_plan_recommends_nothing_that_it_says_cannot_be_done(tmp_path, host_qemu):
    image = plain_chain(tmp_path / 'a "quoted" place', length=9)
    found = plan_at_rest(image, host_qemu)
    choices = {choice.kind: choice for choice in found.choices}
    assert "double quote" in choices["index"].impossible
    assert found.recommended == "squash"


@pytest.fixture
def small_file_system(tmp_path):
    place = tmp_path / "mounted"
    place.mkdir()
    with in_memory(place, "8m"):
        yield place


@pytest.mark.parametrize("free", [0, 300_000, 700_000])
def test_what_a_plan_says_of_room_is_what_the_lifts_say(small_file_system, host_qemu, free):
    image = plain_chain(small_file_system / "c", length=8)
    room = shutil.disk_usage(small_file_system).free
    (small_file_system / "filler").write_bytes(bytes(room - free))
    found = plan_at_rest(image, host_qemu)
    choices = {choice.kind: choice for choice in found.choices}
    assert choices[found.recommended].impossible is None
    for kind, lift in (("index", lift_index), ("squash", lift_squash)):
        if choices[kind].impossible is not None:
            assert "are free" in choices[kind].impossible
            with pytest.raises(ImageError, match="are free"):
                lift(image, host_qemu)
            assert not lift_directory(image).exists()


def choices_for(*, budget_bytes, rate, impossible=()):
    """Choices for 300 layers, 20 GiB in the middle."""

    def choice(kind, depth, copied, command):
        takes = None if rate is None else copied / rate
        why = "a reason" if kind in impossible else None
        return Choice(kind, command, depth, 3, copied, takes, 0, why, ())

    return (
        choice("none", 300, 0, None), choice("index", 1, 0, "index"),
        choice("index with a budget", 1, budget_bytes or 0, "index --copy-budget" if budget_bytes else "index"),
        choice("squash", 2, 20 << 30, "squash"), choice("flatten", 0, 40 << 30, "flatten"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("budget_bytes", "rate", "impossible", "recommended"),
    [
        (1 << 30, 1e9, (), "index with a budget"),
        (1 << 30, 1e8, (), "index"),
        (None, 1e9, (), "index"),
        (1 << 30, 1e10, (), "squash"),
        (1 << 30, None, (), "index"),
        (1 << 30, 1e9, ("index with a budget",), "index"),
        (1 << 30, 1e10, ("squash",), "index with a budget"),
        (1 << 30, 1e8, ("index",), "squash"),
        (1 << 30, 1e8, ("index", "squash"), "index with a budget"),
        (1 << 30, 1e8, ("index", "squash", "index with a budget"), "none"),
    ],
)
def test_a_plan_recommends_what_can_be_done_and_few_extents_where_the_copy_is_short(
    budget_bytes, rate, impossible, recommended
):
    found = recommend(choices_for(budget_bytes=budget_bytes, rate=rate, impossible=impossible), reflinks=False)
    assert found[0] == recommended
