"""QEMU's caches of L2 tables: each layer has one of its own, and their size can only be given layer by layer.

QEMU's tools take that as one nested ``json:`` name alone. They flatten it, each layer's part anew: opening 100 layers
so takes 0.3 s of CPU, 200 layers 2.4 s, and memory of its own, which is why nothing of that is in a sample. A virtual
machine gets a ``-blockdev`` for each layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import read_header

if TYPE_CHECKING:
    from chainlift.study.plan import Plan

#: An entry of a cache is a whole L2 table, but for caches that hold fewer than two: then a part of one
#: (``l2-cache-entry-size``, 512 bytes at least; read_cache_sizes() in block/qcow2.c).
_SMALLEST_ENTRY = 4096


def described(image: Path) -> dict[str, Any]:
    """Return an image with all that it stands on as QEMU's block options have it, as their headers say.

    :raise ImageError: if one is no qcow2 image.
    """
    top: dict[str, Any] = {}
    place, name, kind = top, str(image), "qcow2"
    while True:
        place["driver"] = kind
        place["file"] = {"driver": "file", "filename": name}
        if kind != "qcow2":
            return top
        file = ImageFile(name)
        try:
            header = read_header(file)
        finally:
            file.close()
        if header.backing_file is None:
            return top
        below = header.backing_file.decode("utf-8", "surrogateescape")
        if below.startswith("json:"):
            place["backing"] = json.loads(below.removeprefix("json:"))
            return top
        place["backing"] = {}
        place, name, kind = place["backing"], str(Path(name).parent / below), header.backing_format or "qcow2"


def with_caches(options: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Give every qcow2 layer of :func:`described` options the cache that a plan says; changes them in place."""
    layers = []
    place: dict[str, Any] | None = options
    while place is not None:
        if place["driver"] == "qcow2":
            layers.append(place)
        place = place.get("backing")
    each = plan.l2_cache_size // len(layers) if plan.l2_cache == "all" else plan.l2_cache_size
    for layer in layers:
        layer["l2-cache-size"] = max(each, 2 * _SMALLEST_ENTRY)
        if each < 2 * plan.chain.cluster_size and plan.chain.cluster_size > _SMALLEST_ENTRY:
            layer["l2-cache-entry-size"] = _SMALLEST_ENTRY
    return options


def as_blockdevs(options: dict[str, Any], cache: str) -> list[dict[str, Any]]:
    """Return what an image stands on as one ``-blockdev`` a layer, the lowest first.

    :param options: of :func:`described`.
    :param cache: a cache mode of QEMU's ``-drive``; named nodes do not have it from the one above.
    """
    layers = []
    place = options.get("backing")
    while place is not None:
        layers.append(place)
        place = place.get("backing")
    mode = {"direct": cache in ("none", "directsync"), "no-flush": cache == "unsafe"}
    found: list[dict[str, Any]] = []
    for number, layer in enumerate(reversed(layers)):
        node = {key: value for key, value in layer.items() if key != "backing"}
        node |= {"node-name": f"layer-{number}", "read-only": True, "cache": mode}
        if found:
            node["backing"] = found[-1]["node-name"]
        if node["file"].get("driver") == "file":
            node["file"] = {**node["file"], "read-only": True, "cache": mode}
        found.append(node)
    return found
