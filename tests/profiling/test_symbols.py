import functools
import http.server
import lzma
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from chainlift.errors import InputError
from chainlift.profiling import symbols as module
from chainlift.profiling.elf import Function, functions, read_elf
from chainlift.profiling.symbols import Symbols, load_symbols

PROGRAM = """
static __attribute__((noinline)) int hidden(int n) { volatile int s = 0; while (n--) s += n; return s; }
__attribute__((noinline)) int shown(int n) { return hidden(n) + 1; }
int main(int count, char **words) { (void)words; return shown(count) == 0; }
"""
needs_compiler = pytest.mark.needs("compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A stripped program with one function in its dynamic symbols, and all of its symbols in a file beside it."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "p.c").write_text(PROGRAM)

    def run(*words):
        subprocess.run(words, cwd=folder, check=True)

    run("gcc", "-O1", "-rdynamic", "-Wl,--build-id", "p.c", "-o", "whole")
    run("objcopy", "--only-keep-debug", "whole", "whole.debug")
    run("strip", "-o", "stripped", "whole")
    return folder


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No debug files of packages, and no debuginfod."""
    monkeypatch.setattr(module, "DEBUG_ROOT", tmp_path / "debug")
    monkeypatch.delenv("DEBUGINFOD_URLS", raising=False)
    return tmp_path / "debug"


def hidden_in(program):
    return next(f for f in functions(read_elf(program / "whole"), ".symtab") if f.name == "hidden")


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


@needs_compiler
def test_a_static_function_of_a_stripped_program_has_a_place_and_no_name(program, nowhere):
    hidden, table = hidden_in(program), load_symbols(program / "stripped")
    assert (table.source, table.complete) == ("dynamic symbols", False)
    assert {function.name for function in table.named} >= {"shown", "main"}
    assert table.name_at(hidden.address) is None
    assert table.nameless_at(hidden.address + hidden.size - 1) == hidden.address
    assert f"build ID {read_elf(program / 'whole').build_id}" in table.hint


@needs_compiler
def test_a_debug_file_is_found_by_the_build_id(program, nowhere):
    build_id = read_elf(program / "stripped").build_id
    debug = nowhere / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    debug.parent.mkdir(parents=True)
    shutil.copy(program / "whole.debug", debug)
    hidden, table = hidden_in(program), load_symbols(program / "stripped")
    assert (table.source, table.hint) == (f"debug file {debug}", None)
    assert table.name_at(hidden.address) == "hidden"
    # One that is damaged is done without.
    debug.write_bytes(debug.read_bytes()[:100])
    assert load_symbols(program / "stripped").source == "dynamic symbols"


@needs_compiler
def test_symbols_may_be_given_by_hand_and_must_then_be_some(program, nowhere):
    table = load_symbols(program / "stripped", program / "whole.debug")
    assert table.name_at(hidden_in(program).address) == "hidden"
    with pytest.raises(InputError, match="is not a 64-bit little-endian ELF file"):
        load_symbols(program / "stripped", program / "p.c")


@needs_compiler
def test_compressed_symbols_in_the_program_itself_are_read(program, nowhere, tmp_path):
    # As distributions make it: a debug file with nothing but the symbol table, in xz, in a section of the program.
    mini, with_mini = tmp_path / "mini", tmp_path / "with-mini"
    subprocess.run(["objcopy", "-S", "--keep-symbol=hidden", program / "whole.debug", mini], check=True)
    (tmp_path / "mini.xz").write_bytes(lzma.compress(mini.read_bytes()))
    add = f"--add-section=.gnu_debugdata={tmp_path / 'mini.xz'}"
    subprocess.run(["objcopy", add, program / "stripped", with_mini], check=True)
    hidden, table = hidden_in(program), load_symbols(with_mini)
    assert (table.source, table.complete) == ("symbols in .gnu_debugdata", True)
    assert table.name_at(hidden.address) == "hidden"
    assert {function.name for function in table.named} >= {"hidden", "shown", "main"}


@pytest.fixture
def server(tmp_path):
    """A debuginfod: it answers /buildid/ID/debuginfo with a file."""
    root = tmp_path / "served"
    root.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=root)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield root, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@needs_compiler
@pytest.mark.needs("debuginfod")
def test_debuginfod_is_asked_where_it_is_configured(program, nowhere, server, monkeypatch, tmp_path):
    root, url = server
    build_id = read_elf(program / "stripped").build_id
    monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path / "cache"))
    monkeypatch.setenv("DEBUGINFOD_URLS", url)
    assert load_symbols(program / "stripped").source == "dynamic symbols"
    shutil.rmtree(tmp_path / "cache")  # it keeps that a server has not had a file
    (root / "buildid" / build_id).mkdir(parents=True)
    shutil.copy(program / "whole.debug", root / "buildid" / build_id / "debuginfo")
    hidden, table = hidden_in(program), load_symbols(program / "stripped")
    assert table.source.startswith("debug file ")
    assert table.name_at(hidden.address) == "hidden"
    (root / "buildid" / build_id / "debuginfo").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_symbols(program / "stripped").source == "dynamic symbols"
