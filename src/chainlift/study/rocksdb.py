"""The test ``rocksdb``: random reads of keys of a RocksDB database on the disk, by its own ``db_bench`` in the guest.

A stand-in for YCSB's workload C, which reads alone. The database is laid down before the first snapshot, so that every
block of it lies in the base: its reads fall through the whole chain.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING, Final

from chainlift.errors import GuestError, InputError
from chainlift.study.probe import Probe, Reading, Setup, register

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chainlift.guest.interface import Guest
    from chainlift.results.model import Test
    from chainlift.study.plan import Plan

#: What Debian's guest needs for it.
PACKAGE: Final = "rocksdb-tools"
#: A value; with its key and what is around it, a record takes about 1.1 KiB.
_VALUE_BYTES: Final = 1024
_FOLDER: Final = "rocksdb"
#: An emulated guest lays down some 5,000 records a second on a busy host.
_SLOWEST_RECORDS_PER_S: Final = 500
_RATE: Final = re.compile(r"^readrandom\s*:\s*([0-9.]+) micros/op ([0-9.]+) ops/sec", re.MULTILINE)
_FOUND: Final = re.compile(r"\((\d+) of (\d+) found\)")
_PERCENTILE: Final = re.compile(r"\bP(50|99): ([0-9.]+)")


def database_bytes(keys: int) -> int:
    """Estimate what a database takes on the disk, while it is laid down."""
    return keys * (_VALUE_BYTES + 128) * 2


def lay_database_down(guest: Guest, directory: str, keys: int) -> None:
    """Write a database of so many keys to the disk.

    :param directory: on the file system of the measured disk.
    :raise InputError: if the guest has no db_bench.
    :raise GuestError: if it fails.
    """
    _require_db_bench(guest)
    guest.run(
        _db_bench(directory, keys, "fillseq,compact", "--compression_type=none", "--disable_wal=1") + " && sync",
        timeout_s=120 + keys / _SLOWEST_RECORDS_PER_S,
    ).require()


@dataclass(frozen=True)
class RocksDbProbe:
    """``db_bench readrandom`` for a fixed time, past the guest's page cache."""

    title = "RocksDB"
    names: Sequence[tuple[Test, str]] = (("rocksdb", ""),)

    def lengths(self, plan: Plan) -> Sequence[int]:
        """See :class:`~chainlift.study.probe.Probe`."""
        return plan.guest_lengths or plan.lengths

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """See :class:`~chainlift.study.probe.Probe`."""
        seconds = setup.plan.random.duration_s
        with setup.boot() as guest:
            _require_db_bench(guest)
            options = ["--use_existing_db=1", "--readonly=1", "--use_direct_reads=1", "--cache_size=1048576"]
            options += [f"--duration={max(1, round(seconds))}", "--ops_between_duration_checks=100", "--histogram=1"]
            work = _db_bench(guest.work_directory(), setup.plan.chain.rocksdb_keys, "readrandom", *options)
            done = guest.run(work, timeout_s=240 + 4 * seconds).require()
            yield Reading("rocksdb", "", db_bench_metrics(done.stdout))
            guest.halt()


def db_bench_metrics(output: str) -> dict[str, float]:
    """Read the figures out of what db_bench prints.

    :raise GuestError: if they are not there, or a key was not found: the database is then not what was laid down.
    """
    rate, found = _RATE.search(output), _FOUND.search(output)
    percentiles = {name: float(value) / 1e6 for name, value in _PERCENTILE.findall(output)}
    if rate is None or found is None or percentiles.keys() != {"50", "99"}:
        raise GuestError(f"db_bench in the guest did not give its figures: {output.strip()[-200:]!r}")
    if found[1] != found[2]:
        raise GuestError(f"db_bench in the guest found {found[1]} of {found[2]} keys")
    return {
        "ops_per_s": float(rate[2]),
        "operations": float(found[2]),
        "latency_p50_s": percentiles["50"],
        "latency_p99_s": percentiles["99"],
    }


def _require_db_bench(guest: Guest) -> None:
    if guest.run("command -v db_bench").status != 0:
        raise InputError("the guest has no db_bench", hint=f"install {PACKAGE} in it")


def _db_bench(directory: str, keys: int, benchmarks: str, *options: str) -> str:
    words = [f"--benchmarks={benchmarks}", f"--db={directory}/{_FOLDER}", f"--num={keys}"]
    words += [f"--value_size={_VALUE_BYTES}", *options]
    return " ".join(["db_bench", *map(quote, words)])


@register("rocksdb")
def rocksdb_probes(plan: Plan) -> Sequence[Probe]:  # noqa: ARG001 - every test's function takes the plan
    """Return the probe of the RocksDB test."""
    return [RocksDbProbe()]
