"""Random chains of every kind that QEMU's tools can make, by a hypothesis state machine."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from chainlift import open_chain
from chainlift.chain.extents import map_json, map_table
from chainlift.errors import ImageError

MIB = 1 << 20
KIB = 1 << 10
QEMU_TIMEOUT_S = 60

sizes = st.one_of(
    st.integers(1, 4 * MIB // 512).map(lambda sectors: sectors * 512),
    st.sampled_from([512, 64 * KIB, MIB, MIB + 512, 3 * MIB, 4 * MIB]),
)


@st.composite
def creation_options(draw, with_backing):
    options = {"cluster_size": 1 << draw(st.integers(9, 21))}
    if draw(st.integers(0, 4)) == 0:
        return {**options, "compat": "0.10"}
    options["compat"] = "1.1"
    options["refcount_bits"] = 1 << draw(st.integers(0, 6))
    options["compression_type"] = draw(st.sampled_from(["zlib", "zstd"]))
    options["lazy_refcounts"] = draw(st.sampled_from(["on", "off"]))
    if options["cluster_size"] >= 16 * KIB:
        options["extended_l2"] = draw(st.sampled_from(["on", "off"]))
    if draw(st.integers(0, 5)) == 0:
        options["data_file"] = True
        if not with_backing:
            options["data_file_raw"] = draw(st.sampled_from(["on", "off"]))
    if not with_backing or options.get("extended_l2") == "on":
        options["preallocation"] = draw(st.sampled_from(["off", "off", "metadata", "falloc", "full"]))
    return options


places = st.tuples(st.integers(0, 4 * MIB // 512), st.one_of(st.integers(1, 300), st.sampled_from([128, 2048])))
operations = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "write -c", "write -z", "write -z -u", "discard"]),
        places,
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=6,
)


class ChainMachine(RuleBasedStateMachine):
    """Builds a chain from the base up; when it is done, QEMU and chainlift are asked what it is."""

    def __init__(self):
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="chainlift-parity-"))
        self.layers = []
        self.log = []

    def run_tool(self, *arguments, check=False):
        command = [str(argument) for argument in arguments]
        self.log.append(" ".join(command))
        done = subprocess.run(command, cwd=self.directory, capture_output=True, timeout=QEMU_TIMEOUT_S)
        assert not check or done.returncode == 0, done.stderr
        return done

    @property
    def top(self):
        return self.layers[-1]

    @initialize(
        size=st.integers(1, 3 * MIB), holes=places, raw=st.booleans(), options=creation_options(with_backing=False)
    )
    def make_base(self, size, holes, raw, options):
        if raw:
            path = self.directory / "base.raw"
            path.write_bytes(os.urandom(size))
            if holes[0] * 512 < size:
                with path.open("r+b") as stream:
                    stream.truncate(holes[0] * 512)
                    stream.truncate(size)
            self.layers.append(("base.raw", "raw"))
        else:
            self.create("base.qcow2", -(-size // 512) * 512, options)

    def create(self, name, size, options, *backing):
        options = dict(options)
        if options.pop("data_file", False):
            options["data_file"] = f"{name}.data"
        text = ",".join(f"{key}={value}" for key, value in options.items())
        done = self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", *backing, "-o", text, name, size)
        if done.returncode == 0:
            self.layers.append((name, "qcow2"))

    @precondition(lambda self: self.layers)
    @rule(
        size=sizes,
        options=creation_options(with_backing=True),
        style=st.sampled_from(["relative", "absolute", "json", "file"]),
    )
    def add_overlay(self, size, options, style):
        backing, backing_format = self.top
        path = str(self.directory / backing)
        named = {
            "relative": backing,
            "absolute": path,
            "json": "json:" + json.dumps({"driver": backing_format, "file": {"driver": "file", "filename": path}}),
            "file": f"file:{path}",
        }[style]
        if options["cluster_size"] < 2048 and style == "json":
            named = backing
        self.create(f"{len(self.layers)}.qcow2", size, options, "-F", backing_format, "-b", named)

    @precondition(lambda self: self.layers)
    @rule(operations=operations)
    def change(self, operations):
        name, image_format = self.top
        commands = []
        for kind, (sector, count), value in operations:
            verb = kind.replace("write", f"write -P {value}") if "-z" not in kind and "write" in kind else kind
            commands += ["-c", f"{verb} {sector * 512} {count * 512}"]
        self.run_tool("qemu-io", "-f", image_format, "-d", "unmap", *commands, name)

    @precondition(lambda self: self.layers and self.top[1] == "qcow2")
    @rule(name=st.sampled_from(["before", "after"]))
    def take_internal_snapshot(self, name):
        self.run_tool("qemu-img", "snapshot", "-c", name, self.top[0])

    @precondition(lambda self: self.layers and self.top[1] == "qcow2")
    @rule(size=sizes, preallocation=st.sampled_from(["off", "off", "metadata"]))
    def resize(self, size, preallocation):
        self.run_tool(
            "qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", f"--preallocation={preallocation}", self.top[0], size
        )

    @precondition(lambda self: self.layers and self.top[1] == "qcow2")
    @rule()
    def add_bitmap(self):
        self.run_tool("qemu-img", "bitmap", "--add", "-f", "qcow2", self.top[0], "changes")

    def teardown(self):
        try:
            if self.layers:
                self.compare()
        finally:
            shutil.rmtree(self.directory)

    def compare(self):
        name, image_format = self.top
        # What counts as a hole, and how many blocks a file has, changes when a file system writes it out.
        self.run_tool("sync", *(path.name for path in self.directory.iterdir()), check=True)
        mapped = self.run_tool("qemu-img", "map", "-f", image_format, "--output=json", name, check=True).stdout.decode()
        table = self.run_tool("qemu-img", "map", "-f", image_format, name)
        before = Path.cwd()
        os.chdir(self.directory)
        try:
            with open_chain(name, format=image_format) as chain:
                # Before anything is read: extents that were set aside, once in the page cache, are holes no more.
                self.compare_maps(chain, mapped, table)
                self.run_tool("qemu-img", "convert", "-f", image_format, "-O", "raw", name, "whole.raw", check=True)
                expected = (self.directory / "whole.raw").read_bytes()
                assert chain.read(0, chain.virtual_size) == expected, self.log
                assert sum(window.length for window in chain.resolve()) == chain.virtual_size
        finally:
            os.chdir(before)

    def compare_maps(self, chain, mapped, table):
        text = "".join(map_json(chain, with_compressed='"compressed"' in mapped))
        assert text == mapped, self.log
        if table.returncode == 0:
            assert "".join(map_table(chain)) == table.stdout.decode(), self.log
        else:
            with pytest.raises(ImageError, match="--json"):
                list(map_table(chain))


def run_machine(machine, chains):
    """Let so many chains be built and compared."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=chains,
            stateful_step_count=8,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            print_blob=True,
            # A chain takes dozens of processes: shrinking a failure would take longer than reading its log.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        ),
    )
