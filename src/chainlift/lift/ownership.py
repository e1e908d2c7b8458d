"""Who may read an image, given to all that is made of it: owner, group, mode, access control list, SELinux label.

Whatever the umask is and whatever the directory wants its new files to be: a copy of guest data must be readable to
just those who could read the guest's image. A file is made for its maker alone, gets its owner, and only then its mode.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chainlift.errors import ImageError
from chainlift.host import acl

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_LABEL: Final = "security.selinux"


@dataclass(frozen=True)
class Ownership:
    """Who may do what with an image."""

    uid: int
    gid: int
    #: Permission bits.
    mode: int
    #: The access control list as the file system keeps it; None without one.
    acl: bytes | None = None
    #: The SELinux label; None without one.
    label: bytes | None = None

    @classmethod
    def of(cls, path: Path) -> Ownership:
        """Read what an image has; of a block device too.

        :raise OSError: if it is not there.
        """
        status = path.stat()
        return cls(
            status.st_uid,
            status.st_gid,
            stat.S_IMODE(status.st_mode) & 0o777,
            acl.read_attribute(path, acl.ACCESS),
            acl.read_attribute(path, _LABEL),
        )

    def require_possible(self, image: Path) -> None:
        """Refuse where a new file cannot be made readable to the image's owner, before anything is built.

        :param image: for the error.
        :raise ImageError: if we are neither root nor the owner, and he could not read what we make.
        """
        if os.geteuid() in (0, self.uid):
            return
        shared = self.mode & 0o004 or (self._can_give_group() and self.gid in groups_of(self.uid) and self.mode & 0o040)
        if not shared:
            raise ImageError(
                f"belongs to {_name_of(self.uid)}, who could not read the files of a lift that you make",
                path=image,
                hint="run it as that user or as root",
            )

    def apply(self, target: int | Path, *, read_only: bool = False) -> None:
        """Give it to a file that only its maker can read so far (mode 0600): at no moment can more people read it.

        Who is not root gives what he can: the group only if he is in it; another group then may do no more than
        everybody.

        :param target: the file, or a descriptor of it.
        :param read_only: nobody may write to it.
        :raise OSError: if the file system refuses.
        """
        bits = self.mode & (0o444 if read_only else 0o666)
        own = os.stat(target)  # noqa: PTH116 - a descriptor too
        complete = True
        if os.geteuid() == 0:
            os.chown(target, self.uid, self.gid)
        elif own.st_gid != self.gid:
            if self._can_give_group():
                os.chown(target, -1, self.gid)
            else:
                bits &= 0o707 | (bits & 0o007) << 3
                complete = False
        if self.acl is not None and complete:
            os.setxattr(target, acl.ACCESS, self.acl)
        else:
            # What the directory's default list has given to the new file; the mode would wake it up.
            acl.remove_attribute(target, acl.ACCESS)
        os.chmod(target, bits)  # noqa: PTH101 - a descriptor too
        if self.label is not None and acl.read_attribute(target, _LABEL) != self.label:
            try:
                os.setxattr(target, _LABEL, self.label)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                    raise

    def _can_give_group(self) -> bool:
        return os.geteuid() == 0 or self.gid in (os.getegid(), *os.getgroups())


def make_directory(path: Path, ownership: Ownership) -> None:
    """Make a directory for files with this ownership: its owner may write, and who may read them may enter and look.

    Whoever can enter the directory above may pass through this one as well, without seeing names: libvirt runs a QEMU
    as a user of its own, gives the files to that user while it runs, and does not touch directories.

    :raise OSError: as ``mkdir``; FileExistsError if something has the name.
    """
    path.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(path, ownership.uid, ownership.gid)
    # A directory above with the setgid bit, or with a list for what is made in it, decides nothing here.
    acl.remove_attribute(path, acl.DEFAULT)
    entries = _directory_acl(ownership, acl.read_acl(path.parent))
    named = {key: permissions for key, permissions in entries.items() if key[0] in (acl.USER, acl.GROUP)}
    if named:
        # The mask is the most that anybody but owner and others has.
        entries[acl.MASK, acl.NO_ID] = 0
        for (tag, _), permissions in list(entries.items()):
            if tag in (acl.USER, acl.GROUP, acl.GROUP_OBJ):
                entries[acl.MASK, acl.NO_ID] |= permissions
        with suppress(OSError):  # a file system without lists has none above either
            os.setxattr(path, acl.ACCESS, acl.pack_acl(entries))
            return
    acl.remove_attribute(path, acl.ACCESS)
    group, other = entries[acl.GROUP_OBJ, acl.NO_ID], entries[acl.OTHER, acl.NO_ID]
    path.chmod(0o700 | group << 3 | other)


def _directory_acl(ownership: Ownership, above: acl.Acl) -> acl.Acl:
    mode = ownership.mode
    of_image = {(acl.GROUP_OBJ, acl.NO_ID): mode >> 3 & 7, (acl.OTHER, acl.NO_ID): mode & 7}
    if ownership.acl is not None:
        of_image = acl.unpack_acl(ownership.acl)
    entries: acl.Acl = {}
    for source, wanted, given in ((of_image, acl.READ, acl.READ | acl.EXECUTE), (above, acl.EXECUTE, acl.EXECUTE)):
        mask = source.get((acl.MASK, acl.NO_ID), 7)
        for (tag, who), permissions in source.items():
            if tag in (acl.MASK, acl.USER_OBJ):
                continue
            effective = permissions if tag == acl.OTHER else permissions & mask
            entries[tag, who] = entries.get((tag, who), 0) | (given if effective & wanted else 0)
    entries[acl.USER_OBJ, acl.NO_ID] = acl.READ | acl.WRITE | acl.EXECUTE
    return entries


def can_enter(directory: Path, uid: int, groups: Collection[int] | None = None) -> bool:
    """Whether a user can reach what lies in a directory: enter it, and every directory above.

    :param directory: where it does not exist yet, the nearest one above that does counts.
    :param groups: all groups that the user is in; None: as the host knows him.
    """
    groups = groups_of(uid) if groups is None else groups
    place = directory.resolve()
    while not place.exists() and place != place.parent:
        place = place.parent
    with suppress(OSError):
        return all(acl.permits(each, acl.EXECUTE, uid=uid, groups=groups) for each in (place, *place.parents))
    return False


def refuse_unreachable(directory: Path, image: Path) -> None:
    """Refuse a directory for a lift that the image's owner, whose QEMU reads it, cannot enter.

    :raise ImageError: naming the directory and the user.
    """
    uid = image.stat().st_uid
    if not can_enter(directory, uid):
        raise ImageError(
            f"cannot be entered by {_name_of(uid)}, to whom {image} belongs",
            path=directory,
            hint="its QEMU could not read a lift there: choose another --lift-dir, or let that user enter (chmod o+x)",
        )


def groups_of(uid: int) -> set[int]:
    """Return all groups that a user is in, as far as the host knows him."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return set()
    return {*os.getgrouplist(entry.pw_name, entry.pw_gid)}


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user {uid}"
