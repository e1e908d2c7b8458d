"""Opening a chain: from a name, layer by layer, to the base, trusting none of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from chainlift.chain.chain import Chain
from chainlift.chain.layer import Layer
from chainlift.chain.linear import ExtentsFile
from chainlift.chain.names import FORMATS, Reference, parse_argument, parse_name
from chainlift.chain.policy import ChainPolicy
from chainlift.errors import ChainliftError, ImageError, PolicyError
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import Image, read_header
from chainlift.units import counted

_DEFAULT_POLICY = ChainPolicy()

#: First bytes -> QEMU driver, of formats that QEMU would find by looking.
_MAGIC = (
    (b"QFI\xfb\0\0\0\1", "qcow"),
    (b"QFI\xfb", "qcow2"),
    (b"QED\0", "qed"),
    (b"KDMV", "vmdk"),
    (b"COWD", "vmdk"),
    (b"# Disk DescriptorFile", "vmdk"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"),
    (b"WithoutFreeSpace", "parallels"),
    (b"WithouFreSpacExt", "parallels"),
    (b"LUKS\xba\xbe", "luks"),
)
_VDI_SIGNATURE = b"\x7f\x10\xda\xbe"
#: Drivers that mean raw content when they stand as a backing format.
_RAW_FORMATS = ("raw", "file", "host_device")


def open_chain(
    path: str | os.PathLike[str] | Reference,
    policy: ChainPolicy = _DEFAULT_POLICY,
    *,
    format: str | None = None,  # noqa: A002
) -> Chain:
    """Open an image and all that lies below it, for reading. No QEMU is used and nothing is ever written.

    >>> with open_chain("disk.qcow2") as chain:
    ...     print(chain.length, chain.virtual_size, chain.layers[-1].path)
    4 4194304 layer0.qcow2

    :param path: the active layer, as a person names it: if no file has the name, a ``json:`` name is understood too.
        Or a reference, from :func:`~chainlift.chain.names.parse_name`: a name out of a header is no person's.
    :param policy: where the chain may lead.
    :param format: ``qcow2`` or ``raw``; None: found by looking, as qemu-img does. A reference says its own.
    :return: the chain, with every file open; close it, or use it as a context manager.
    :raise ImageError: if a layer is missing, malformed or of a format that is not supported.
    :raise PolicyError: if the chain leads where it may not, or back to itself.
    """
    chain, cut = open_intact(path, policy, format=format)
    if cut is not None:
        chain.close()
        raise cut.error
    return chain


@dataclass(frozen=True)
class Cut:
    """Where a chain could not be followed any further."""

    error: ChainliftError
    #: What the last layer that could be opened names; None where that is no name of a local file.
    reference: Reference | None


def open_intact(
    path: str | os.PathLike[str] | Reference,
    policy: ChainPolicy = _DEFAULT_POLICY,
    *,
    format: str | None = None,  # noqa: A002
) -> tuple[Chain, Cut | None]:
    """Open an image and as much as can be opened of what lies below it; parameters as :func:`open_chain`.

    :return: the chain down to the last layer that can be opened, and why it ends there; None where that is the base.
    :raise ImageError: if the image itself cannot be opened.
    :raise PolicyError: if it may not be opened.
    """
    layers: list[Layer] = []
    seen: set[tuple[int, ...]] = set()
    top = path if isinstance(path, Reference) else parse_argument(os.fspath(path), file_format=format)
    reference: Reference | None = top
    try:
        while reference is not None:
            layer = _open_next(layers, reference, seen, policy)
            layers.append(layer)
            seen.add(layer.file.identity)
            reference = None  # should the name make no sense
            reference = _backing_of(layer)
    except ChainliftError as error:
        if not layers:
            raise
        if error.hint is None and reference is not None and error.path == reference.path:
            error.hint = f"it is the backing file of {layers[-1].path}"
        return Chain(tuple(layers)), Cut(error, reference)
    except BaseException:
        Chain(tuple(layers)).close()
        raise
    return Chain(tuple(layers)), None


def _open_next(layers: list[Layer], reference: Reference, seen: set[tuple[int, ...]], policy: ChainPolicy) -> Layer:
    if len(layers) > policy.max_depth:
        raise PolicyError(f"has more than {counted(policy.max_depth, 'layer')} over its base", path=layers[0].path)
    layer = _open_layer(reference, policy)
    if layer.file.identity in seen:
        raise PolicyError("is its own backing file: the chain is a loop", path=layer.path)
    return layer


def _open_layer(reference: Reference, policy: ChainPolicy) -> Layer:
    file = _open_file(reference.path, policy, is_descriptor=reference.is_descriptor)
    file_format = reference.format or probe_format(file.pread(0, 4096))
    if file_format in _RAW_FORMATS:
        file_format = "raw"
    if file_format not in FORMATS:
        raise ImageError(f"the format {file_format!r} is not supported", path=reference.path)
    if file_format == "raw":
        return Layer(reference.path, "raw", file, None, reference.format is None, None, None, reference)
    header = read_header(file)
    data_file = None
    if header.has_data_file:
        if reference.data_file is not None:
            data_reference = reference.data_file
        elif header.data_file:
            # Unlike a backing file's, this name is relative to the working directory (qcow2_do_open()).
            data_reference = parse_name(os.fsdecode(header.data_file), file_format="raw")
        else:
            raise ImageError("needs an external data file and names none", path=reference.path)
        if data_reference.format not in (None, *_RAW_FORMATS):
            what = f"has a json: name whose 'data-file' is {data_reference.format}: only raw ones are supported"
            raise ImageError(what, path=reference.path)
        data_file = _open_file(data_reference.path, policy)
    image = Image(file, header, data_file)
    name = None
    if reference.follows_header and header.backing_file is not None:
        name = os.fsdecode(header.backing_file)
    elif reference.backing is not None:
        name = reference.backing.path
    probed = reference.format is None
    return Layer(reference.path, "qcow2", file, image, probed, name, header.backing_format, reference)


def _backing_of(layer: Layer) -> Reference | None:
    """Return what a layer names as its backing file, or what it was opened over instead."""
    if layer.image is None:
        return None
    if layer.reference.follows_header and layer.backing_name is not None:
        return parse_name(layer.backing_name, named_in=layer.path, file_format=layer.backing_format)
    return layer.reference.backing


def _open_file(path: str, policy: ChainPolicy, *, is_descriptor: bool = False) -> ImageFile:
    kind = ExtentsFile if is_descriptor else ImageFile
    return kind(path, check=policy.check_place if policy.within else None)


def probe_format(head: bytes) -> str:
    """Tell a format from a file's first bytes, as QEMU does where nobody says it."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    return "vdi" if head[64:68] == _VDI_SIGNATURE else "raw"
