"""How it was measured, in plain words, and the environment as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.report.data import plan_of
from chainlift.report.effects import layers
from chainlift.results.statistics import summarise
from chainlift.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from chainlift.report.data import Results, Run

_TESTS = {
    "read": (
        "Reading from the guest: dd if=/dev/sda of=/dev/null bs=4M once to fill QEMU's tables, then the guest's page "
        "cache is dropped and the same command is timed."
    ),
    "random": (
        "Random reads: fio in the guest reads 16 KiB (unless the plan says otherwise) at random places of the disk, "
        "past the guest's cache, for a fixed time."
    ),
    "host": (
        "Host reads: the same QEMU release's block layer reads the same images without a guest, in the sizes and queue "
        "depths named; time a request is that of all requests over their number, the opening of the chain left out."
    ),
    "stream": "Streaming: block-stream of all layers into the active one, from the command to QEMU's completion event.",
    "memory": (
        "Memory: the kernel's own figure of the most that QEMU ever held (peak resident set), taken when the process "
        "has ended, for a guest that boots and halts, and for one that reads the whole disk in between."
    ),
    "profile": "Profiles: perf samples QEMU in a run of its own, never in a run that is timed.",
    "limits": "Limits: the longest chain that opens, and the longest that reads, found by bisection.",
    "boot": "Boot: from the start of QEMU until the guest answers, its opening of the chain included.",
    "rocksdb": (
        "RocksDB: db_bench in the guest reads random keys of a database that was laid down before the first snapshot, "
        "past the guest's cache, for a fixed time."
    ),
    "live": "Live: a client reads all the while the running VM is switched from the chain to the lift and back.",
}


@dataclass(frozen=True)
class Facts:
    """A table of names and values."""

    title: str
    rows: tuple[tuple[str, str], ...]


def how_it_was_measured(results: Results) -> list[str]:
    """Return one sentence or two for each thing that a reader has to know of the method."""
    done = {s.test for run in results.runs for s in run.samples}
    text = [sentence for test, sentence in _TESTS.items() if test in done]
    for run in results.runs:
        where = f"{run.label}: " if len(results.runs) > 1 else ""
        if run.chain is not None:
            text.append(where + _built(run))
    if done:
        text.append(
            "Length n means n layers over the base. A length is selected by putting a throw-away layer on snapshot n, "
            "so that nothing in the chain changes while it is measured."
        )
        text.append(
            "Repeats go round all cells, so that a slow minute of the machine hits every length alike. What is shown "
            "is the median: half of the samples may be disturbed without moving it far, where the least falls with the "
            "number of samples and a mean follows each that was disturbed. The dots are the single samples, the line "
            "through them their range."
        )
        text += [s for run in results.runs for s in _how_cells_were_taken(run)]
        text.append("A ratio is to the shortest chain of the same run. Nothing on this page is typed in by hand.")
    return text


def _how_cells_were_taken(run: Run) -> list[str]:
    """Say in which order, with which warm-up and beside what else the samples were taken, where that is recorded."""
    plan = plan_of(run)
    text = []
    if "seed" in plan:
        text.append(f"The order of the cells in a repeat is random (seed {plan['seed']}).")
    if any("warm_up_requests" in s.metrics for s in run.samples):
        text.append(
            "Host reads are measured for a time (host_read.budget_s of CPU time), whatever number of requests that is; "
            "the first requests of each, which load the layers' tables, are measured by themselves and taken off."
        )
    aio = {q.host_aio for q in run.environment.qemus if q.host_aio} if run.environment else set()
    if aio:
        text.append(f"Host reads read files with aio={', '.join(sorted(aio))}, chosen by what works here.")
    if pin := plan.get("pin"):
        text.append(f"Everything ran on CPU {', '.join(map(str, pin))} alone.")
    seen = [s.conditions for s in run.samples if s.conditions is not None]
    if seen:
        quiet = sum(not c.is_disturbed for c in seen)
        text.append(
            f"Beside each cell the CPU time of other programs, the hypervisor's and that of a fixed loop were taken: "
            f"{quiet} of {len(seen)} samples were taken on a quiet machine."
        )
    return text


def _built(run: Run) -> str:
    chain = run.chain
    assert chain is not None
    how = {
        "live": "was built under a running guest that wrote with fio while snapshots were taken",
        "offline": "was laid down layer by layer without a guest, with the same distribution of writes",
        "given": "was given",
    }[chain.built]
    text = (
        f"The chain: {layers(chain.length)} over a disk of {format_bytes(chain.virtual_size_bytes)} with clusters of "
        f"{format_bytes(chain.cluster_size_bytes)}; it {how}"
    )
    if chain.interval_s and chain.built == "live":
        text += f", one every {format_seconds(chain.interval_s)}"
        if chain.pace != 1:
            text += f" sped up {chain.pace:g} times (interval and write rate alike, so that a snapshot holds as much)"
    return text + (f"; that took {format_seconds(chain.build_s)}." if chain.build_s else ".")


def chain_facts(results: Results) -> list[Facts]:
    """Return the chain of each run in figures."""
    tables = []
    for run in results.runs:
        chain = run.chain
        if chain is None:
            continue
        rows = [("Layers over the base", f"{chain.length:,}"), ("Disk", format_bytes(chain.virtual_size_bytes))]
        sizes = summarise(chain.layer_bytes[1:])
        if sizes is not None:
            mean = sum(chain.layer_bytes[1:]) / sizes.count
            rows += [
                ("A snapshot, mean", f"{format_bytes(mean)}; the experiment's: 4.9 MB"),
                ("A snapshot, median", format_bytes(sizes.median)),
                ("Smallest and largest", f"{format_bytes(sizes.low)} and {format_bytes(sizes.high)}"),
                ("All snapshots", format_bytes(sum(chain.layer_bytes[1:]))),
            ]
        rows.append(("Base", format_bytes(chain.layer_bytes[0])) if chain.layer_bytes else ("Base", "none"))
        if chain.layer_clusters[1:]:
            clusters = summarise(chain.layer_clusters[1:])
            assert clusters is not None
            rows.append(("Clusters a snapshot, median", f"{clusters.median:,.0f}"))
        rows.append(("Cluster size", format_bytes(chain.cluster_size_bytes)))
        rows.append(("Built", chain.built + (f", in {format_seconds(chain.build_s)}" if chain.build_s else "")))
        tables.append(Facts("The chain" if len(results.runs) == 1 else f"The chain of {run.label}", tuple(rows)))
    return tables


def environment_facts(results: Results) -> list[Facts]:
    """Return the environment of each run."""
    tables = []
    for run in results.runs:
        env = run.environment
        if env is None:
            continue
        rows = [
            ("Processor", f"{env.cpu}, {env.cpus} CPUs"),
            ("Memory", format_bytes(env.memory_bytes)),
            ("System", f"{env.operating_system}, {_kernel(env.host_kernel)}"),
        ]
        for qemu in env.qemus:
            symbols = {True: ", with symbols", False: ", without symbols", None: ""}[qemu.has_symbols]
            reason = f" ({qemu.accelerator_reason})" if qemu.accelerator_reason else ""
            rows.append(
                (
                    "QEMU" if len(env.qemus) == 1 else f"QEMU, {qemu.label}",
                    f"{qemu.version}{symbols}; {qemu.binary}; {qemu.accelerator.upper()}{reason}"
                    + (f"; machine {qemu.machine}" if qemu.machine else ""),
                )
            )
        if env.guest is not None:
            guest = env.guest
            named = f"kernel {guest.kernel}" if guest.kernel and guest.kernel not in guest.description else ""
            what = ", ".join(p for p in (guest.kind, guest.description, named) if p)
            rows.append(("Guest", f"{what}; {guest.vcpus} vCPUs, {format_bytes(guest.memory_bytes)}"))
        rows.append(("Cache mode", env.cache_mode + (f", aio {env.aio}" if env.aio else "")))
        rows.append(("L2 cache size", env.l2_cache_size))
        places = dict.fromkeys(
            f"{f.file_system} on {f.device}{' (' + f.mount_options + ')' if f.mount_options else ''}"
            + {True: ", rotating", False: ", not rotating", None: ""}[f.rotational]
            for f in env.files
        )
        if places:
            rows.append(("Files on", "; ".join(places)))
        if env.governor:
            rows.append(("CPU governor", env.governor))
        if env.mitigations:
            active = sorted(name for name, text in env.mitigations.items() if text.startswith("Mitigation"))
            rows.append(("Mitigations", ", ".join(active) or "none"))
        rows += [("Cannot show", limit) for limit in env.limits]
        rows.append(("Started", env.started_at.strftime("%Y-%m-%d %H:%M %Z").strip()))
        rows.append(("chainlift", env.chainlift + (f", commit {env.commit}" if env.commit else "")))
        tables.append(Facts("Environment" if len(results.runs) == 1 else f"Environment of {run.label}", tuple(rows)))
    return tables


def _kernel(release: str) -> str:
    return release if release.startswith("Linux") else f"Linux {release}"
