"""The report as data: everything that the page says, for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from chainlift._version import __version__
from chainlift.report.causes import cause_sentences
from chainlift.report.data import Results
from chainlift.report.explain import explanation
from chainlift.report.findings import (
    comparison_sentence,
    failure_sentences,
    headline,
    lift_sentences,
    memory_sentence,
)
from chainlift.report.growths import growth_sentence
from chainlift.report.method import how_it_was_measured
from chainlift.report.profiles import calls_sentence, hot_tables, share_sentence
from chainlift.report.sections import share_table, verdict_tables
from chainlift.report.tables import tables_of
from chainlift.report.warnings import warnings
from chainlift.results.model import ChainShape, Environment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class TableData(_Frozen):
    """A table: its rows have a value, or null, under each key. Units are in the keys: ``_s``, ``_bytes``, ``_iops``."""

    title: str
    rows: list[dict[str, Any]]


class RunData(_Frozen):
    """One result directory."""

    label: str
    plan: str = Field(description="the plan as it ran, TOML")
    environment: Environment | None
    chain: ChainShape | None


class Document(_Frozen):
    """What ``chainlift study report --json`` prints."""

    schema_version: Literal[2] = Field(2, alias="schema")
    chainlift: str = Field(description="the version that wrote this")
    headline: str
    findings: list[str] = Field(description="the page's other sentences, in its order")
    warnings: list[str]
    failures: list[str] = Field(description="crashes and what did not end, a sentence each")
    tables: list[TableData]
    method: list[str]
    runs: list[RunData]


def document(directories: Sequence[Path]) -> Document:
    """Return the report of one or several result directories as data.

    :raise InputError: if one is no result directory or does not hold what it should.
    """
    results = Results.load(directories)
    found = [memory_sentence(results), *lift_sentences(results), growth_sentence(results), comparison_sentence(results)]
    found += [*cause_sentences(results), *explanation(results), share_sentence(results), calls_sentence(results)]
    tables = [*tables_of(results), *verdict_tables(results), share_table(results), *hot_tables(results)]
    return Document(
        chainlift=__version__,
        headline=headline(results),
        findings=[sentence for sentence in found if sentence],
        warnings=warnings(results),
        failures=failure_sentences(results),
        tables=[TableData.model_validate(table.as_data()) for table in tables if table.rows],
        method=how_it_was_measured(results),
        runs=[
            RunData(label=run.label, plan=run.plan_text, environment=run.environment, chain=run.chain)
            for run in results.runs
        ],
    )
