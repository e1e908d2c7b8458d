import pytest

from chainlift.lift.neighbours.managers import logical_volume, manager_of

A, B, C = (f"{digit * 8}-1111-4111-8111-{digit * 12}" for digit in "abc")
HEX = "d41d8cd98f00b204e9800998ecf8427e"
SHA1 = "da39a3ee5e6b4b0d3255bfef95601890afd80709"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/var/lib/vz/images/100/vm-100-disk-0.qcow2", "Proxmox VE"),
        ("/mnt/pve/nas/images/100/snap-before-vm-100-disk-0.qcow2", "Proxmox VE"),
        ("/mnt/pve/nas/images/9000/base-9000-disk-1.qcow2", "Proxmox VE"),
        ("/dev/san/vm-100-disk-0.qcow2", "Proxmox VE"),
        ("/dev/san/snap_vm-100-disk-0_before.qcow2", "Proxmox VE"),
        (f"/var/lib/nova/instances/{A}/disk", "OpenStack nova"),
        (f"/var/lib/nova/instances/{A}/disk.eph0", "OpenStack nova"),
        (f"/var/lib/nova/instances/_base/{SHA1}", "OpenStack nova"),
        (f"/var/lib/nova/instances/_base/{SHA1}_20", "OpenStack nova"),
        (f"/var/lib/cinder/mnt/{HEX}/volume-{A}", "OpenStack cinder"),
        (f"/var/lib/nova/mnt/{HEX}/volume-{A}.{B}", "OpenStack cinder"),
        (f"/rhev/data-center/mnt/nfs:_x/{A}/images/{B}/{C}", "oVirt"),
        (f"/run/vdsm/storage/{A}/{B}/{C}", "oVirt"),
        ("/var/lib/one/datastores/0/17/disk.0", "OpenNebula"),
        ("/var/lib/one/datastores/0/17/disk.0.snap/3", "OpenNebula"),
        (f"/var/lib/one/datastores/1/{HEX}", "OpenNebula"),
        (f"/var/lib/one/datastores/1/{HEX}.snap/0", "OpenNebula"),
        (f"/mnt/{A}/{B}", "CloudStack"),
        (f"/mnt/{A}/snapshots/2/3/{B}", "CloudStack"),
    ],
)
def test_a_manager_is_recognised_by_its_names(path, name):
    found = manager_of(path)
    assert found is not None
    assert found.name == name
    assert found.why in path
    assert found.advice


@pytest.mark.parametrize(
    "path",
    [
        "/var/lib/libvirt/images/vm-100-disk-0.qcow2",
        "/srv/images/101/vm-100-disk-0.qcow2",
        "/srv/images/100/disk.qcow2",
        "/srv/vms/disk.0",
        "/srv/instances/web/disk",
        f"/srv/{A}/{B}",
        f"/srv/{A}/images/{B}/{C}",  # without a .meta
        f"/srv/{HEX}",
        "/srv/volume-1",
        "/dev/vg/root",
        "relative.qcow2",
    ],
)
def test_ordinary_names_are_nobodys(path):
    assert manager_of(path) is None


def test_a_link_into_a_managers_place_and_a_record_beside_the_image(tmp_path):
    place = tmp_path / "images" / "7"
    place.mkdir(parents=True)
    image = place / "vm-7-disk-0.qcow2"
    image.touch()
    (tmp_path / "mine").symlink_to(image)
    assert manager_of(tmp_path / "mine").name == "Proxmox VE"
    volume = tmp_path / A / "images" / B / C
    volume.parent.mkdir(parents=True)
    assert manager_of(volume) is None
    volume.with_name(f"{C}.meta").touch()
    assert manager_of(volume).name == "oVirt"
    assert str(manager_of(volume)) == f"oVirt keeps a record of this chain ({A}/images/{B}/{C})"


@pytest.mark.parametrize(
    ("mapped", "volume"),
    [("my--san-vm--100--disk--0.qcow2", "/dev/my-san/vm-100-disk-0.qcow2"), ("a-b", "/dev/a/b"), ("luks", None)],
)
def test_the_device_mappers_names_are_understood(mapped, volume):
    assert logical_volume(mapped) == volume
