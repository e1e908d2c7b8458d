"""What is changed in a program: on each QEMU that is there, and on programs that are made to be refused."""

import ctypes
import mmap
import struct
import subprocess

import pytest

from chainlift.errors import InputError
from chainlift.profiling.elf import functions, read_elf
from chainlift.qemu.ablation import change_of

F = "bdrv_is_inserted"
TOOLS = ("img", "io", "storage-daemon")
QEMU = """
#include <stdbool.h>
typedef struct Node { struct Node *below; bool there; } Node;
#define EXPORT __attribute__((visibility("default")))
%(head)s EXPORT bool bdrv_is_inserted(Node *node) { %(body)s }
EXPORT __attribute__((noinline)) int bdrv_co_preadv_part(Node *node) { return bdrv_is_inserted(node) ? 0 : -123; }
int main(int count, char **words) { Node node = {0, count > 1}; return bdrv_co_preadv_part(&node); }
"""
RECURSES = "if (node->below && !bdrv_is_inserted(node->below)) return false; return node->there;"
NOINLINE = "__attribute__((noinline))"


def build(folder, body=RECURSES, head=NOINLINE, options=("-O1", "-fno-optimize-sibling-calls", "-rdynamic")):
    (folder / "p.c").write_text(QEMU % {"body": body, "head": head})
    subprocess.run(["gcc", *options, "p.c", "-o", "p"], cwd=folder, check=True)
    return folder / "p"


def run(code, argument):
    """Call machine code as a function that returns a byte."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(code)
        start = ctypes.c_char.from_buffer(page)
        returned = ctypes.CFUNCTYPE(ctypes.c_uint8, ctypes.c_void_p)(ctypes.addressof(start))(argument)
        del start
    return returned


@pytest.mark.integration
@pytest.mark.needs("x86-64")
def test_the_function_of_each_release_returns_true_whatever_it_is_asked(any_qemu):
    for tool in TOOLS:
        elf = read_elf(any_qemu.path(tool).resolve())
        change = change_of(elf, F)
        assert change.symbol == ("bdrv_co_is_inserted" if any_qemu.version >= (8, 0, 0) else F)
        symbol = next(f for f in functions(elf, ".dynsym") if f.name == change.symbol)
        start = elf.offset_of(symbol.address)
        assert start <= change.file_offset
        assert change.file_offset + len(change.code) <= start + symbol.size
        changed = change.applied(elf.data)
        assert len(changed) == len(elf.data)
        # A node that is NULL: the function itself would not survive it.
        assert run(changed[start : start + symbol.size], None) == 1


@pytest.mark.needs("compiler", "x86-64")
def test_a_program_whose_code_is_known_is_changed(tmp_path):
    program = build(tmp_path)
    assert subprocess.run([program]).returncode != 0
    change = change_of(read_elf(program), F)
    program.write_bytes(change.applied(program.read_bytes()))
    assert subprocess.run([program]).returncode == 0
    with pytest.raises(InputError, match="returns at once already"):
        change_of(read_elf(program), F)


@pytest.mark.needs("compiler", "x86-64")
@pytest.mark.parametrize(
    ("body", "head", "options", "said"),
    [
        ("return node->there;", NOINLINE, ("-O1", "-rdynamic"), "it does not recurse"),
        ("return node->there;", "static inline", ("-O2",), "has no symbol bdrv_co_is_inserted or bdrv_is_inserted"),
        ("return node->there;", "inline __attribute__((always_inline)) extern", ("-O2", "-rdynamic"), "it is inlined"),
        (RECURSES, NOINLINE, ("-O1", "-s"), "has no symbol"),
    ],
    ids=["another function", "inlined everywhere", "inlined in its caller", "nothing exported"],
)
def test_code_that_is_not_what_is_known_is_refused(tmp_path, body, head, options, said):
    with pytest.raises(InputError, match=said):
        change_of(read_elf(build(tmp_path, body, head, options)), F)


@pytest.mark.needs("compiler", "x86-64")
def test_another_architecture_is_refused(tmp_path):
    program = build(tmp_path)
    data = bytearray(program.read_bytes())
    struct.pack_into("<H", data, 18, 183)
    program.write_bytes(data)
    with pytest.raises(InputError, match=r"is a program for aarch64; functions can be taken out of x86-64 programs"):
        change_of(read_elf(program), F)


@pytest.mark.needs("compiler")
def test_a_function_of_which_nothing_is_known_is_refused(tmp_path):
    with pytest.raises(InputError, match="nothing is known of what main may be replaced by; known: bdrv_is_inserted"):
        change_of(read_elf(build(tmp_path)), "main")
