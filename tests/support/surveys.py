"""Records of surveys, for what is made of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from chainlift.results.survey.records import Advice, Chain, Cost, End, Head, Source
from chainlift.results.survey.store import Survey

START = datetime(2026, 11, 1, tzinfo=UTC)
HOST = "h1"
PLACE = "/srv"


def cost(read_4k_cpu_s: float, memory_bytes: float = 1e6) -> Cost:
    """Return a prediction that may be off by a half."""
    names = {"read_4k_cpu_s": read_4k_cpu_s, "memory_bytes": memory_bytes}
    low = {f"{name}_low": value / 1.5 for name, value in names.items()}
    return Cost(**names, **low, **{f"{name}_high": value * 1.5 for name, value in names.items()})


def chain(path: str, length: int, **more: Any) -> Chain:
    """Return a chain; reads of half of its content fall to its base."""
    values: dict[str, Any] = {
        "host": HOST, "path": f"{PLACE}/{path}", "stamp": "0", "base": f"{PLACE}/base.qcow2", "is_running": False,
        "modified_at": START, "length": length, "virtual_size_bytes": 1 << 30, "disk_bytes": length << 20,
        "visible_bytes": 1 << 20, "shadowed_bytes": 0, "own_shadowed_bytes": 0, "l2_cache_bytes": 65536 * length,
        "mean_depth": length / 2, "fall_bytes": (1 << 19, *[0] * (length.bit_length() - 1), 1 << 19),
        "unwritten_bytes": (), "took_s": 0.001,
    }  # fmt: skip
    return Chain(**{**values, **more})


def advice(read_4k_cpu_s: float, **more: Any) -> Advice:
    """Return the advice to make an index."""
    return Advice(**{"verb": "index", "command": "chainlift index x", "length": 1, "cost": cost(read_4k_cpu_s), **more})


def survey(*chains: Chain, day: float = 0, host: str = HOST, place: str = PLACE, ended: bool = True) -> Survey:
    """Return a survey of a place."""
    when = START + timedelta(days=day)
    head = Head(chainlift="0", started_at=when, sources=(Source(host=host, path=place),), model="a model")
    found = Survey(head)
    for one in chains:
        found.add(one)
    if ended:
        found.add(
            End(ended_at=when, images=9, chains=len(chains), disk_bytes=1, left_out=0, took_s=1.0, peak_bytes=1)
        )  # fmt: skip
    return found
