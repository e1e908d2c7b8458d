import pytest

from chainlift.errors import InputError, MissingToolError
from chainlift.qemu.binary import installed_version
from chainlift.qemu.find import find_qemu


def fake(path, version="7.2.0 (made up)", status=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version}'\nexit {status}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def build(tmp_path):
    fake(tmp_path / "qemu-system-x86_64")
    fake(tmp_path / "qemu-img")
    fake(tmp_path / "qemu-io")
    fake(tmp_path / "storage-daemon" / "qemu-storage-daemon")
    return tmp_path


@pytest.mark.integration
def test_the_hosts_qemu_is_found_with_its_version():
    qemu = find_qemu()
    assert (qemu.label, qemu.source) == ("host", "host")
    assert qemu.version >= (5, 0, 0)
    assert qemu.version_text.startswith(".".join(map(str, qemu.version[:2])))
    assert qemu.command("img", "--version") == [str(qemu.img), "--version"]


@pytest.mark.integration
def test_the_installed_version_is_known_without_running_it():
    assert installed_version() == find_qemu(need=("img",)).version_text


@pytest.mark.parametrize("text", [None, "", "#!/bin/sh\nexec other-img\n", "qemu-img version of mine\n"])
def test_what_does_not_say_its_version_is_not_asked(tmp_path, monkeypatch, text):
    monkeypatch.setenv("PATH", str(tmp_path))
    if text is not None:
        (tmp_path / "qemu-img").write_text(text)
        (tmp_path / "qemu-img").chmod(0o755)
    assert installed_version() is None


def test_a_build_directory_is_a_qemu(build):
    qemu = find_qemu(str(build))
    assert qemu.system == build / "qemu-system-x86_64"
    assert qemu.storage_daemon == build / "storage-daemon" / "qemu-storage-daemon"
    assert (qemu.version, qemu.version_text, qemu.source) == ((7, 2, 0), "7.2.0 (made up)", "path")


def test_a_binary_finds_its_tools_beside_it(build):
    renamed = (build / "qemu-system-x86_64").rename(build / "my-qemu")
    qemu = find_qemu(str(renamed))
    assert qemu.system == renamed
    assert qemu.img == build / "qemu-img"


def test_a_tool_that_is_not_there_says_what_to_do(build, monkeypatch):
    (build / "qemu-io").unlink()
    with pytest.raises(MissingToolError, match="has no qemu-io; build it with"):
        find_qemu(str(build))
    qemu = find_qemu(str(build), need=("img",))
    with pytest.raises(MissingToolError, match="no qemu-io"):
        qemu.path("io")


def test_a_system_emulator_that_is_not_needed_is_not_run(build):
    (build / "qemu-system-x86_64").write_text("#!/bin/sh\nexit 1\n")
    assert find_qemu(str(build), need=("storage-daemon",)).version == (7, 2, 0)
    with pytest.raises(MissingToolError, match="no QEMU that runs here"):
        find_qemu(str(build))


def test_no_qemu_at_all_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="install the package qemu-utils"):
        find_qemu(need=("img",))


def test_too_old_a_qemu_is_refused(build):
    fake(build / "qemu-system-x86_64", version="2.11.1(Debian 1:2.11)")
    with pytest.raises(MissingToolError, match=r"QEMU 2.11.1 is too old; install 5.0 or newer"):
        find_qemu(str(build))


def test_a_program_that_is_no_qemu_is_refused(build):
    (build / "qemu-system-x86_64").write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(MissingToolError, match="is no QEMU that runs here: hello"):
        find_qemu(str(build))


def test_a_binary_of_another_architecture_is_refused(build):
    (build / "qemu-system-x86_64").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00" + bytes(100))
    with pytest.raises(MissingToolError, match="is no QEMU that runs here"):
        find_qemu(str(build))


def test_a_path_that_is_not_there_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        find_qemu(str(tmp_path / "none"))
    with pytest.raises(InputError, match="is no QEMU"):
        find_qemu("fedora:39")
