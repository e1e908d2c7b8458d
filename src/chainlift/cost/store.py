"""Where calibrations are kept, and which parameters hold for a QEMU on this host."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, TypeVar

from chainlift.cost.parameters import Parameters
from chainlift.cost.speed import host_factor
from chainlift.errors import InputError
from chainlift.host.cache import cache_dir
from chainlift.host.durable import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_T = TypeVar("_T")
_VERSION = re.compile(r"(\d+)\.(\d+)")


def find_parameters(qemu: str | None = None, *, may_measure: bool = True) -> Parameters:
    """Return the parameters for a QEMU: calibrated on this host, else the shipped ones scaled by a measure of a second.

    :param qemu: its version as ``-version`` prints it (``Qemu.version_text``); None: the newest that was calibrated
        here, else the newest that is shipped.
    :param may_measure: without it the host's speed is not measured, which takes a second, where that was never done.
    :raise InputError: if a calibration cannot be read.
    """
    if (calibrated := _calibrated(qemu)) is not None:
        return calibrated
    shipped = nearest_shipped(qemu)
    factor = host_factor(may_measure=may_measure)
    for_what = "" if qemu is None or _number(qemu) == _number(shipped.qemu) else f", the nearest to {_short(qemu)}"
    return shipped.scaled(
        factor,
        f"shipped for QEMU {_short(shipped.qemu)}{for_what}, scaled by {factor:.2f} to this host; "
        "chainlift calibrate measures it",
    )


def nearest_shipped(qemu: str | None) -> Parameters:
    """Return the shipped parameters of the release that is nearest, as they were measured."""
    shipped = shipped_parameters()
    if qemu is None:
        return max(shipped, key=lambda p: _number(p.qemu))
    wanted = _number(qemu)
    # A release before the oldest that was measured is like it, one behind the newest like that; else the one before.
    older = [p for p in shipped if _number(p.qemu) <= wanted]
    return max(older, key=lambda p: _number(p.qemu)) if older else min(shipped, key=lambda p: _number(p.qemu))


def shipped_parameters() -> list[Parameters]:
    """Return what was measured for each release, on the host that docs/cost.md names."""
    text = files("chainlift.cost").joinpath("shipped.json").read_text(encoding="utf-8")
    return [Parameters.of(entry) for entry in json.loads(text)["releases"]]


def keep(parameters: Parameters) -> Path:
    """Keep a calibration of this host; return where."""
    path = calibration_file(parameters.qemu)
    write_atomically(path, json.dumps(asdict(parameters), indent=1) + "\n")
    return path


def write_parameters(path: Path, by_qemu: Mapping[str, Parameters]) -> None:
    """Write parameters of several QEMUs, by their labels."""
    write_atomically(path, json.dumps({label: asdict(one) for label, one in by_qemu.items()}, indent=1) + "\n")


def read_parameters(path: Path) -> dict[str, Parameters]:
    """Return what :func:`write_parameters` has written; nothing where there is no such file.

    :raise InputError: if it cannot be read.
    """
    return _read(path, dict[str, Parameters], "holds no parameters that can be read", "delete it") or {}


def calibration_file(qemu: str) -> Path:
    """Return where the calibration of a build is kept: another build of the same version is another QEMU."""
    return cache_dir("cost") / f"{re.sub(r'[^A-Za-z0-9.+~-]+', '_', qemu).strip('_')}.json"


def _calibrated(qemu: str | None) -> Parameters | None:
    if qemu is not None:
        return _calibration(calibration_file(qemu))
    found = [p for path in sorted(cache_dir("cost").glob("*.json")) if (p := _calibration(path)) is not None]
    return max(found, key=lambda p: _number(p.qemu), default=None)


def _calibration(path: Path) -> Parameters | None:
    return _read(path, Parameters, "is no calibration that can be read", "delete it, or calibrate again")


def _read(path: Path, kind: type[_T], wrong: str, hint: str) -> _T | None:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(wrong, path=path, hint=hint) from error
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        raise InputError(wrong, path=path, hint=hint) from error


def _number(qemu: str) -> tuple[int, int]:
    match = _VERSION.search(qemu)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _short(qemu: str) -> str:
    return qemu.partition(" ")[0]
