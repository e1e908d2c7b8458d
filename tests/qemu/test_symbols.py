import shutil
from pathlib import Path

import pytest

from chainlift.host.elf import Function
from chainlift.qemu.symbols import Symbols, load_symbols


def symbols(named, ranges=()):
    return Symbols(elf=None, source="dynamic symbols", named=named, ranges=ranges)


def test_an_address_between_two_symbols_belongs_to_neither():
    table = symbols([Function(100, 20, "bdrv_is_inserted"), Function(200, 10, "bdrv_eject")])
    assert [table.name_at(address) for address in (99, 100, 119, 120, 199, 200, 210)] == [
        None, "bdrv_is_inserted", "bdrv_is_inserted", None, None, "bdrv_eject", None,
    ]  # fmt: skip


def test_a_function_without_a_name_is_told_from_its_neighbours():
    table = symbols([Function(100, 20, "a")], [Function(100, 20, None), Function(120, 50, None)])
    assert table.nameless_at(169) == 120
    assert table.nameless_at(170) is None


@pytest.mark.integration
def test_qemu_img_names_the_function_that_the_experiment_found():
    path = Path(shutil.which("qemu-img")).resolve()
    table = load_symbols(path)
    names = {function.name: function for function in table.named}
    found = names.get("bdrv_co_is_inserted") or names["bdrv_is_inserted"]
    assert table.name_at(found.address + found.size - 1) == found.name
    assert table.complete or "build ID" in table.hint
