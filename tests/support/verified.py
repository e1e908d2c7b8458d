"""Clients of a disk that know what every block of it must read as, and check each request."""

import random
import struct
import threading
import time

import numpy as np

from chainlift.errors import ChainliftError

BLOCK = 4096


class Client(threading.Thread):
    """One connection that owns a part of the disk: it knows what every block of it must read as."""

    def __init__(self, daemon, chain, first: int, last: int, seed: int, stop: threading.Event):
        super().__init__(daemon=True)
        self.client = daemon.client()
        self.random = random.Random(seed)
        self.first, self.last = first, last
        self.stop = stop
        self.chain = chain
        #: 0: as the chain had it; 1: zeroes; else the version that was written.
        self.version = np.zeros(last - first, np.int64)
        self.requests = 0
        self.longest_s = 0.0
        self.error: Exception | None = None

    def expected(self, block: int) -> bytes:
        version = int(self.version[block - self.first])
        if version == 0:
            return self.chain.block(block)
        return bytes(BLOCK) if version == 1 else struct.pack("<QQ", version << 20, block) * (BLOCK // 16)

    def check(self, block: int, count: int) -> None:
        data = self.client.read(block * BLOCK, count * BLOCK)
        assert data == b"".join(self.expected(block + i) for i in range(count)), f"wrong bytes in block {block}+{count}"

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                count = self.random.choice((1, 1, 1, 4, 16))
                block = self.random.randrange(self.first, self.last - count)
                kind = self.random.random()
                began = time.monotonic()
                if kind < 0.6:
                    self.check(block, count)
                elif kind < 0.92:
                    version = self.requests + 2
                    self.version[block - self.first : block - self.first + count] = version
                    self.client.write(block * BLOCK, b"".join(self.expected(block + i) for i in range(count)))
                elif kind < 0.97:
                    self.version[block - self.first : block - self.first + count] = 1
                    self.client.write_zeroes(block * BLOCK, count * BLOCK)
                else:
                    self.client.flush()
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.requests += 1
            for block in range(self.first, self.last, 16):
                self.check(block, min(16, self.last - block))
        except (AssertionError, ChainliftError) as error:
            self.error = error
