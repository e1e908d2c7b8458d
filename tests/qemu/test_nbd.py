import json
import random
import tempfile
from pathlib import Path

import pytest

from chainlift.errors import QemuError
from chainlift.qemu.find import find_qemu
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.nbd import NbdClient
from chainlift.qemu.process import QemuProcess

pytestmark = pytest.mark.integration


@pytest.fixture
def serve():
    """Serves a file read-only, as long as the test runs."""
    qemu = find_qemu("host", need=["storage-daemon"])
    with tempfile.TemporaryDirectory() as place:
        nbd, qmp = Path(place) / "nbd", Path(place) / "qmp"

        def start(node):
            argv = qemu.command(
                "storage-daemon",
                *("--chardev", f"socket,id=qmp,path={qmp},server=on,wait=off", "--monitor", "chardev=qmp"),
                *("--blockdev", json.dumps({"node-name": "disk", **node})),
                *("--nbd-server", f"addr.type=unix,addr.path={nbd}"),
                *("--export", "type=nbd,id=disk,node-name=disk,name=disk"),
            )  # fmt: skip
            processes.append(QemuProcess(argv, environment=qemu.environment))
            Monitor.connect(qmp, processes[0]).close()
            return NbdClient(nbd, "disk"), processes[0]

        processes = []
        yield start
        for process in processes:
            process.close()


def test_many_pieces_at_once_come_to_their_places(tmp_path, serve):
    content = random.Random(1).randbytes(4 << 20)
    (tmp_path / "file").write_bytes(content)
    client, _ = serve({"driver": "file", "filename": str(tmp_path / "file")})
    rng = random.Random(2)
    with client:
        assert client.size_bytes == len(content)
        for count in (0, 1, 7, 100):
            pieces = [(rng.randrange(len(content) - 70000), rng.randrange(1, 70000)) for _ in range(count)]
            buffer = bytearray(sum(length for _, length in pieces))
            parts, at = [], 0
            for offset, length in pieces:
                parts.append((memoryview(buffer)[at : at + length], offset))
                at += length
            client.read_into(parts)
            assert bytes(buffer) == b"".join(content[offset : offset + length] for offset, length in pieces)
        assert client.read(5, 3) == content[5:8]


def test_an_error_says_where(tmp_path, serve):
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    broken = {"driver": "file", "filename": str(tmp_path / "file")}
    rule = [{"event": "none", "iotype": "read", "sector": 256, "once": False}]
    client, _ = serve({"driver": "blkdebug", "image": broken, "inject-error": rule})
    with client:
        client.read_into([(memoryview(bytearray(512)), 0)])
        with pytest.raises(QemuError, match="Input/output error at byte 131072"):
            client.read_into([(memoryview(bytearray(512)), 131072)])


def test_a_server_that_goes_away_is_no_traceback(tmp_path, serve):
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    client, process = serve({"driver": "file", "filename": str(tmp_path / "file")})
    with client:
        process.kill()
        with pytest.raises(QemuError, match="connection was lost"):
            client.read_into([(memoryview(bytearray(512)), 0)])
