"""What is made of an image is readable to just those who can read the image."""

import os
import stat
import subprocess

import pytest
from tests.support.need import missing

from chainlift.errors import ImageError
from chainlift.host import acl
from chainlift.lift.ownership import Ownership, can_enter, make_directory, refuse_unreachable

OWNER, GROUP, SOMEBODY = 1234, 1235, 4321
as_root = pytest.mark.needs("root")
with_setfacl = pytest.mark.needs("acl")


@pytest.fixture
def place(tmp_path):
    """A directory that everybody can enter, of nobody in particular."""
    for directory in (tmp_path, *list(tmp_path.parents)[:3]):
        directory.chmod(directory.stat().st_mode | 0o011)
    return tmp_path


@pytest.fixture
def image(place):
    path = place / "image"
    path.write_bytes(b"secret")
    return path


def new_file(path):
    """A file as a lift makes it: for its maker alone at first."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    return path


def can_read(path, uid, groups=()):
    """Whether the kernel lets a user read a file."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(list(groups))
            os.setresgid(*[groups[0] if groups else 60000] * 3)
            os.setresuid(uid, uid, uid)
            path.read_bytes()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@as_root
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o400, 0o755])
def test_owner_group_and_mode_follow_the_image_whatever_the_umask(place, image, umask, mode):
    os.chown(image, OWNER, GROUP)
    image.chmod(mode)
    before = os.umask(umask)
    try:
        made = new_file(place / "made")
        Ownership.of(image).apply(made)
        make_directory(place / "lift", Ownership.of(image))
    finally:
        os.umask(before)
    assert mode_of(made) == mode & 0o666
    assert (made.stat().st_uid, made.stat().st_gid) == (OWNER, GROUP)
    inside = made.rename(place / "lift" / "made")
    for uid, groups in ((OWNER, ()), (SOMEBODY, (GROUP,)), (SOMEBODY, ())):
        assert can_read(inside, uid, groups) == can_read(image, uid, groups)


@as_root
def test_a_read_only_file_and_a_descriptor(place, image):
    os.chown(image, OWNER, GROUP)
    image.chmod(0o664)
    descriptor = os.open(place / "made", os.O_CREAT | os.O_RDWR, 0o600)
    Ownership.of(image).apply(descriptor, read_only=True)
    os.close(descriptor)
    assert mode_of(place / "made") == 0o444
    assert (place / "made").stat().st_uid == OWNER


@as_root
@with_setfacl
def test_an_access_control_list_follows_the_image(place, image):
    image.chmod(0o600)
    subprocess.run(["setfacl", "-m", f"u:{SOMEBODY}:r,g:{GROUP}:rw", image], check=True)
    made = new_file(place / "made")
    make_directory(place / "lift", Ownership.of(image))
    Ownership.of(image).apply(made)
    listed = ["getfacl", "-cpn"]
    assert subprocess.check_output([*listed, made]) == subprocess.check_output([*listed, image])
    inside = made.rename(place / "lift" / "made")
    assert can_read(inside, SOMEBODY)
    assert can_read(inside, OWNER, (GROUP,))
    assert not can_read(inside, OWNER)
    Ownership.of(image).apply(inside, read_only=True)
    assert b"\nmask::r--" in subprocess.check_output([*listed, inside])


@as_root
@with_setfacl
def test_a_default_list_of_the_directory_opens_nothing(place, image):
    image.chmod(0o640)
    subprocess.run(["setfacl", "-d", "-m", f"u:{SOMEBODY}:rwx", place], check=True)
    made = new_file(place / "made")
    Ownership.of(image).apply(made)
    make_directory(place / "lift", Ownership.of(image))
    assert not can_read(made, SOMEBODY)
    later = new_file(place / "lift" / "later")
    later.chmod(0o660)
    assert not can_read(later, SOMEBODY)


@as_root
@with_setfacl
def test_who_can_pass_to_the_image_can_pass_to_the_lift_and_sees_no_names(place, image):
    # As libvirt has it: an image of root's that is given to QEMU's user while it runs, together with the layers.
    image.chmod(0o600)
    place.chmod(0o700)
    subprocess.run(["setfacl", "-m", f"u:{SOMEBODY}:x", place], check=True)
    make_directory(place / "lift", Ownership.of(image))
    made = new_file(place / "lift" / "made")
    os.chown(made, SOMEBODY, -1)
    assert can_read(made, SOMEBODY)
    assert can_enter(place / "lift", SOMEBODY)
    assert not can_enter(place / "lift", OWNER)
    assert not acl.permits(place / "lift", acl.READ, uid=SOMEBODY, groups=[])
    assert acl.permits(place / "lift", acl.EXECUTE, uid=SOMEBODY, groups=[])


@as_root
def test_a_label_follows_the_image(place, image):
    label = b"system_u:object_r:svirt_image_t:s0:c1,c2\0"
    try:
        os.setxattr(image, "security.selinux", label)
    except OSError as error:
        missing("labels", str(error))
    made = new_file(place / "made")
    Ownership.of(image).apply(made)
    assert os.getxattr(made, "security.selinux") == label


@as_root
def test_a_directory_that_the_owner_cannot_enter_is_refused(place, image):
    os.chown(image, OWNER, GROUP)
    closed = place / "closed"
    closed.mkdir(mode=0o750)
    with pytest.raises(ImageError, match=rf"closed/not yet there: cannot be entered by the user {OWNER}"):
        refuse_unreachable(closed / "not yet there", image)
    os.chown(closed, 0, GROUP)
    assert can_enter(closed, OWNER, [GROUP])
    assert not can_enter(closed, OWNER, [])
    closed.chmod(0o751)
    refuse_unreachable(closed / "not yet there", image)
    os.chown(image, 0, 0)
    closed.chmod(0o000)
    refuse_unreachable(closed, image)


@as_root
@pytest.mark.parametrize(
    ("mode", "groups", "wrong"),
    [(0o600, (), True), (0o660, (), True), (0o664, (), False), (0o600, (GROUP,), True)],
)
def test_somebody_who_cannot_give_a_file_to_its_owner_is_refused_where_that_matters(place, image, mode, groups, wrong):
    os.chown(image, OWNER, GROUP)
    image.chmod(mode)
    place.chmod(0o777)
    ownership = Ownership.of(image)
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(list(groups))
            os.setresgid(SOMEBODY, SOMEBODY, SOMEBODY)
            os.setresuid(SOMEBODY, SOMEBODY, SOMEBODY)
            try:
                ownership.require_possible(image)
            except ImageError:
                os._exit(3)
            ownership.apply(new_file(place / "made"))
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (3 if wrong else 0)
    if not wrong:
        # Our group may do no more than everybody: it is not the image's.
        assert mode_of(place / "made") == 0o644
