"""Which layers of a chain go, which stay, and why: what somebody wants, and what others need.

A layer goes only where nobody else names, holds or relies on it, and only where the next kept layer above it can take
over what is seen of it: that one is written anew, and put in its own place.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.chain.linear import ExtentsFile
from chainlift.errors import ChainliftError, ImageError, InputError
from chainlift.lift.build.replacement import Merge, name_below
from chainlift.lift.neighbours.carried import carried_by
from chainlift.lift.neighbours.managers import manager_of
from chainlift.lift.neighbours.neighbourhood import Neighbourhood, Ours
from chainlift.lift.neighbours.processes import describe_holders
from chainlift.lift.record.liftable import require_liftable
from chainlift.lift.record.lifts import find_lift
from chainlift.lift.record.manifest import Pointer

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from chainlift.chain import Chain, Layer
    from chainlift.lift.neighbours.carried import Carried


@dataclass(frozen=True)
class Fate:
    """What becomes of a layer."""

    #: As the chain has it.
    path: str
    #: When it was last written to, which is when the next snapshot was taken; seconds since the epoch.
    time_s: float
    #: What its files take.
    on_disk_bytes: int
    #: Whether it is deleted.
    goes: bool
    #: Why it stays; of one that goes, empty.
    why: str = ""
    #: Whether it stays although nobody wants it.
    is_kept_back: bool = False


def require_prunable(chain: Chain) -> None:
    """Refuse a chain whose layers cannot be told from their names in headers, or cannot be copied.

    :raise ImageError: naming the layer.
    """
    require_liftable(chain)
    for layer in chain.layers:
        if isinstance(layer.file, ExtentsFile):
            raise ImageError(
                "is an index, which points into the layers under it",
                path=layer.path,
                hint="take it out first: chainlift restore",
            )
        if not layer.reference.follows_header or layer.reference.data_file is not None:
            raise ImageError(
                "is named with a json: name that overrides what its header says",
                path=layer.path,
                hint="name it by its path: qemu-img rebase -u",
            )
    if chain.layers[0].image is None:
        raise ImageError("is no qcow2 image", path=chain.layers[0].path)


def layer_time_s(layer: Layer) -> float:
    """Return when a layer, or the file that its data lie in, was last written to, seconds since the epoch.

    :raise ImageError: if it cannot be looked at.
    """
    try:
        return max(path.stat().st_mtime for path in files_of_layer(layer))
    except OSError as error:
        raise ImageError(f"cannot be looked at: {error.strerror}", path=layer.path) from error


class Choice:
    """What is done with each layer of a chain.

    :param chain: open; :func:`require_prunable` has let it pass.
    :param kept: layers that are wanted, each with the reason; all others are to go. The image and the base stay anyway.
    :param search: directories in which others are looked for who may need a layer, besides the image's.
    :param ours: processes whose open files do not count.
    :param our_disk: whose layers libvirt's definitions may name, see
        :attr:`chainlift.lift.disk.Disk.known_to_libvirt_as`.
    :param image_is_written: by whom the image is written to, as a phrase: then it cannot be written anew.
    :param force: also where a manager keeps its own record of the chain.
    :raise InputError: if a directory cannot be searched, or an image there cannot be read.
    """

    def __init__(
        self,
        chain: Chain,
        kept: Mapping[int, str],
        *,
        search: Sequence[Path] = (),
        ours: Collection[int] = (),
        our_disk: tuple[str, str] | None = None,
        image_is_written: str | None = None,
        force: bool = False,
    ) -> None:
        self._chain = chain
        self._neighbourhood = Neighbourhood(
            Path(chain.layers[0].path), search=search, our_processes=ours, our_disk=our_disk
        )
        self._image_is_written = image_is_written
        self._force = force
        self._ours = Ours(path for layer in chain.layers for path in files_of_layer(layer))
        self._carried: dict[int, Carried] = {}
        last = len(chain.layers) - 1
        self.fates = [self._fate(0, "the image")]
        above, fixed = 0, None
        looked_at = False
        for number in range(1, last):
            wanted = kept.get(number)
            why = wanted
            if why is None:
                if not looked_at:
                    fixed, looked_at = self._why_fixed(above), True
                why = self._why_stays(number, above, fixed)
            if why is None:
                self.fates.append(self._fate(number, None))
                continue
            self.fates.append(self._fate(number, why, is_kept_back=wanted is None))
            above, looked_at = number, False
        if last > 0:
            self.fates.append(self._fate(last, "the base"))

    @property
    def searched(self) -> str:
        """Where others were looked for, to be told before a deletion."""
        return self._neighbourhood.searched

    @property
    def merges(self) -> list[Merge]:
        """What is merged into what, the uppermost first."""
        stays = [number for number, fate in enumerate(self.fates) if not fate.goes]
        return [Merge(above, below) for above, below in pairwise(stays) if below > above + 1]

    def _fate(self, number: int, why: str | None, *, is_kept_back: bool = False) -> Fate:
        layer = self._chain.layers[number]
        on_disk = layer.file.allocated_bytes
        if layer.data_file is not layer.file:
            on_disk += layer.data_file.allocated_bytes
        return Fate(layer.path, layer_time_s(layer), on_disk, why is None, why or "", is_kept_back)

    def _why_stays(self, number: int, above: int, fixed: str | None) -> str | None:
        """Say why a layer that nobody wants cannot go."""
        layer, upper = self._chain.layers[number], self._chain.layers[above]
        if fixed is not None:
            return f"{upper.path} stands on it and cannot be written anew: {fixed}"
        if (why := self._why_ours_no_more(number)) is not None:
            return why
        for path in files_of_layer(layer):
            if (why := self._neighbourhood.why_keep(path, ours=self._ours)) is not None:
                return why
        for one in {number, above}:
            if self._content(one).bitmaps and self._chain.layers[one].virtual_size != upper.virtual_size:
                name = self._content(one).bitmaps[0].name
                return f"its bitmap {name!r} is of a disk of another size than {upper.path}"
        try:
            name_below(self._chain, Merge(above, number + 1))
        except InputError as error:
            return f"what is under it cannot be named by {upper.path}: {error.what}"
        return None

    def _why_ours_no_more(self, number: int) -> str | None:
        """Say why a layer can neither go nor be written anew."""
        layer = self._chain.layers[number]
        if (why := self._lift_of(number)) is not None:
            return why
        if not self._force and (manager := manager_of(layer.path)) is not None:
            return f"{manager}; {manager.advice}"
        try:
            content = self._content(number)
        except ChainliftError as error:
            return f"it cannot be looked into: {error.what}"
        unsaved = [bitmap.name for bitmap in content.bitmaps if bitmap.in_use]
        return f"its bitmap {unsaved[0]!r} was not saved properly" if unsaved else None

    def _why_fixed(self, number: int) -> str | None:
        """Say why a layer cannot be written anew, as a phrase."""
        layer = self._chain.layers[number]
        if number == 0 and self._image_is_written is not None:
            return self._image_is_written
        if (why := self._why_ours_no_more(number)) is not None:
            return why
        if (why := self._content(number).irreplaceable) is not None:
            return why
        if layer.data_file is not layer.file:
            return "its data lie in another file"
        path = Path(os.path.realpath(layer.path))
        status = path.stat()
        if layer.file.is_block_device:
            return "it is a block device"
        if status.st_nlink > 1:
            return "it has another name (a hard link)"
        if os.geteuid() not in (0, status.st_uid):
            return "it belongs to another user"
        if os.geteuid() != 0 and status.st_gid not in (os.getegid(), *os.getgroups()):
            return "it belongs to a group that you are not in"
        if not os.access(path.parent, os.W_OK | os.X_OK):
            return f"nothing can be written in {path.parent}"
        if not self._neighbourhood.covers(path):
            return "it lies outside the directories that were searched"
        if holders := self._neighbourhood.open_files.holders(path):
            return f"{describe_holders(holders)} has it open"
        # Who names it as a backing file reads the same; who points into the file itself does not.
        users = [user for user in self._neighbourhood.files.users_of(path) if user.kind not in _BY_NAME]
        return str(users[0]) if users else None

    def _lift_of(self, number: int) -> str | None:
        if number == 0:
            return None
        above = self._chain.layers[number - 1]
        if above.backing_name is None:
            return None
        lift = find_lift(Path(os.path.abspath(above.path)), Pointer(above.backing_name, above.backing_format))  # noqa: PTH100
        if lift is None:
            return None
        can_go = "; chainlift restore takes it out" if lift.can_be_undone else ""
        return f"it is a {lift.manifest.kind} that chainlift has made{can_go}"

    def _content(self, number: int) -> Carried:
        if number not in self._carried:
            image = self._chain.layers[number].image
            assert image is not None
            self._carried[number] = carried_by(image)
        return self._carried[number]


_BY_NAME = ("backing file", "symbolic link")


def files_of_layer(layer: Layer) -> Sequence[Path]:
    """Return a layer's file, and its data file where that is another one; links followed."""
    own = Path(os.path.realpath(layer.path))
    if layer.data_file is layer.file:
        return [own]
    return [own, Path(os.path.realpath(layer.data_file.path))]
