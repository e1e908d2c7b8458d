"""Where apt takes packages from: the host's own Debian sources, with the suite replaced.

So mirrors, proxies and keyrings are the ones that this host uses and trusts already, and no network host is named here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from chainlift.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_ROLLING = {"stable", "oldstable", "oldoldstable", "testing", "unstable", "sid"}


def replace_suite(etc: Path, suites: Sequence[str]) -> dict[str, str]:
    """Return apt sources for these suites: the host's own Debian archive sources, only the suite changed.

    A source is the archive's where it offers the host's own release (not its security or updates suite).

    :param etc: where ``os-release`` and ``apt`` are.
    :return: file name -> text.
    :raise InputError: if the host has no Debian source.
    """
    release = os_release(etc / "os-release")
    own = {release.get("VERSION_CODENAME", "")} | _ROLLING
    found: dict[str, str] = {}
    files = [etc / "apt/sources.list", *sorted((etc / "apt/sources.list.d").glob("*"))]
    for file in files if release.get("ID") == "debian" else []:
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        if file.suffix == ".sources":
            entries = [entry for stanza in _stanzas(text) if (entry := _stanza_for(stanza, own, suites))]
        elif file.suffix == ".list":
            entries = [entry for line in text.splitlines() if (entry := _line_for(line, own, suites))]
        else:
            continue
        if entries:
            found[file.name] = ("\n\n" if file.suffix == ".sources" else "\n").join(entries) + "\n"
    if not found:
        raise InputError(
            "this host's apt has no Debian source to take packages of another suite from", path=etc / "apt"
        )
    return found


def os_release(path: Path) -> dict[str, str]:
    """Return the fields of an ``os-release`` file (os-release(5)); none where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip().strip('"') for name, _, value in pairs}


def _stanzas(text: str) -> Iterator[list[tuple[str, str]]]:
    """Yield deb822 stanzas as (field, value with its continuation lines)."""
    for block in re.split(r"\n\s*\n", text):
        fields: list[tuple[str, str]] = []
        for line in block.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace() and fields:
                fields[-1] = (fields[-1][0], f"{fields[-1][1]}\n{line}")
            elif ":" in line:
                name, _, value = line.partition(":")
                fields.append((name.strip(), value.strip()))
        if fields:
            yield fields


def _stanza_for(stanza: list[tuple[str, str]], own: set[str], suites: Sequence[str]) -> str | None:
    values = {name.lower(): value for name, value in stanza}
    if (
        "deb" not in values.get("types", "").split()
        or values.get("enabled", "yes").lower() == "no"
        or not own.intersection(values.get("suites", "").split())
        or "main" not in values.get("components", "").split()
    ):
        return None
    replaced = {"types": "deb", "suites": " ".join(suites), "components": "main"}
    return "\n".join(f"{name}: {replaced.get(name.lower(), value)}" for name, value in stanza)


def _line_for(line: str, own: set[str], suites: Sequence[str]) -> str | None:
    match = re.match(r"\s*deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line)
    if match is None or match[3].rstrip("/") not in own or "main" not in match[4].split():
        return None
    return "\n".join(f"deb {match[1] or ''}{match[2]} {suite} main" for suite in suites)
