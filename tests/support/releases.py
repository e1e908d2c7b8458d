"""The releases of QEMU that tests run on: the host's, and what ``chainlift qemu add`` has unpacked.

A test that takes the argument ``qemu`` (a name) or the fixture ``any_qemu`` (a :class:`~chainlift.qemu.binary.Qemu`)
runs once on each. The marker ``qemu`` says which of them it can do with. A release that is not there is no parameter:
the test is not skipped for it. ``--qemu SPEC`` chooses, and may be given several times.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from tests.support.need import VARIABLE, required

from chainlift.errors import InputError, MissingToolError
from chainlift.qemu.find import find_qemu
from chainlift.qemu.releases import added_releases

if TYPE_CHECKING:
    from chainlift.qemu.binary import Qemu

#: What ``CHAINLIFT_REQUIRE=releases`` wants to be there.
REQUIRED = ("debian:trixie", "debian:trixie-backports")
#: Marks the parameter of a test that none of the releases fits: the test is deselected.
NONE = pytest.mark.no_release_fits


def chosen(specs: list[str]) -> list[Qemu]:
    """Return the QEMUs to test on.

    :param specs: what ``--qemu`` named; nothing: the host's and every release that is there, but none twice.
    :raise pytest.UsageError: if a release is required and not there.
    """
    found = []
    if specs:
        for spec in specs:
            try:
                found.append(find_qemu(spec, need=("img",)))
            except MissingToolError as error:
                if "releases" in required():
                    raise pytest.UsageError(str(error)) from None
            except InputError as error:
                raise pytest.UsageError(str(error)) from None
        return found
    with contextlib.suppress(MissingToolError):  # tests that need it say so
        found.append(find_qemu("host", need=("img",)))
    there = added_releases()
    if "releases" in required():
        for spec in set(REQUIRED) - {qemu.label for qemu in there}:
            raise pytest.UsageError(f"{VARIABLE}: the QEMU of {spec} is not unpacked; run: chainlift qemu add {spec}")
    return found + [qemu for qemu in there if qemu.version_text not in {one.version_text for one in found}]


def fitting(qemus: list[Qemu], mark: pytest.Mark | None) -> list[str]:
    """Return the names of those that a test can do with, by its marker ``qemu``.

    ``since`` and ``before`` are versions, ``(6, 1)``; ``host=False`` leaves the host's out.
    """
    bounds = {"since": (0,), "before": (1 << 30,), "host": True}
    wanted = {**bounds, **(mark.kwargs if mark else {})}
    assert wanted.keys() == bounds.keys(), f"the marker qemu takes {[*bounds]}"
    return [
        qemu.label
        for qemu in qemus
        if wanted["since"] <= qemu.version < wanted["before"] and (wanted["host"] or qemu.source != "host")
    ]


def parametrize(metafunc: pytest.Metafunc, qemus: list[Qemu]) -> None:
    """Give a test its releases, if it takes any."""
    mark = metafunc.definition.get_closest_marker("qemu")
    names = fitting(qemus, mark)
    parameters = names or [pytest.param("none", marks=NONE)]
    if "any_qemu" in metafunc.fixturenames:
        metafunc.parametrize("any_qemu", parameters, indirect=True, scope="session")
    elif mark is not None:
        metafunc.parametrize("qemu", parameters)
