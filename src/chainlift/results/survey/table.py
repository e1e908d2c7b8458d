"""A survey as a table for data frames and databases: a row a chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chainlift.errors import MissingToolError
from chainlift.results.survey.records import Advice, Chain, Cost

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pydantic import BaseModel

#: Parts of a record whose fields become columns of their own.
_PARTS: dict[str, type[BaseModel]] = {"cost": Cost, "advice": Advice, "advice_cost": Cost}


def require() -> None:
    """Check that what writes a table is there; :raise MissingToolError: if it is not."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingToolError(
            "a Parquet file needs the Python package pyarrow", hint="pip install 'chainlift[fleet]'"
        ) from error


def write_table(chains: Iterable[Chain], path: Path) -> None:
    """Write a Parquet file with a row a chain: ``cost_read_4k_cpu_s``, ``advice_command``.

    :raise MissingToolError: if pyarrow is not there.
    :raise OSError: if the file cannot be written.
    """
    require()
    import os

    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "integer": pa.int64(), "number": pa.float64(), "string": pa.string(), "boolean": pa.bool_(),
        "date-time": pa.timestamp("us", tz="UTC"), "integers": pa.list_(pa.int64()), "json": pa.string(),
    }  # fmt: skip
    kinds = _columns("", Chain)
    schema = pa.schema([(name, types[kind]) for name, kind in kinds.items()])
    rows = [_flat("", chain.model_dump(), kinds) for chain in chains]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _columns(prefix: str, model: type[BaseModel]) -> dict[str, str]:
    """Return the columns of a model and of its parts, and what each holds, as its JSON Schema says."""
    found: dict[str, str] = {}
    for name, field in model.model_json_schema()["properties"].items():
        column = f"{prefix}{name}"
        if column == "kind":
            continue
        if column in _PARTS:
            found |= _columns(f"{column}_", _PARTS[column])
            continue
        kind = next((one for one in field.get("anyOf", [field]) if one.get("type") != "null"), field)
        if kind.get("type") == "array":
            found[column] = "integers" if kind["items"].get("type") == "integer" else "json"
        else:
            found[column] = kind.get("format") or kind["type"]
    return found


def _flat(prefix: str, values: dict[str, Any], kinds: dict[str, str]) -> dict[str, Any]:
    import json

    row: dict[str, Any] = {}
    for name, value in values.items():
        column = f"{prefix}{name}"
        if isinstance(value, dict):
            row |= _flat(f"{column}_", value, kinds)
        elif column in kinds:
            row[column] = json.dumps(value) if kinds[column] == "json" else value
    return row
