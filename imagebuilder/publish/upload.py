"""Sending the blocks of a disk in parallel, so that a crash costs no block that the cloud has.

A cloud does not say which parts of an unfinished upload it has (EBS refuses to list the blocks of a pending snapshot),
so it is written down here. Each sender waits until its block is written down before it takes the next: after a
crash at most one block for each sender is sent twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from imagebuilder.publish.base import Content, Work
from imagebuilder.publish.blocks import BlockReader, BlockSet, data_blocks

SENDERS = 16
"""Requests in flight. A block of 512 KiB takes EBS 50 to 100 ms, so this makes about 100 MB/s; more is only memory."""

Send = Callable[[int, bytes], None]
"""Sends one block, given its number. Returns when the cloud has it."""
Seen = Callable[[int, bytes], None]
"""Called with every block that is not empty, sent now or before, in no order."""


def send_blocks(
    disk: Content, block: int, work: Work, send: Send, seen: Seen = lambda _index, _data: None, senders: int = SENDERS
) -> int:
    """Send every block that is not all zeros and that the cloud has not; returns how many the disk has.

    Raises what `send` or `work` raises, after the blocks under way are done.
    """
    wanted = list(data_blocks(disk.path, disk.size, block))
    there = BlockSet(-(-disk.size // block), work.blocks)
    work.phase("upload", len(wanted) * block, len(there) * block)
    journal = _Journal(work, there, block)
    reader = BlockReader(disk.path, block)
    try:
        return _Sending(reader, journal, work, send, seen).run(wanted, senders)
    finally:
        reader.close()


class _Journal:
    """Writes down what was sent: one write for all that came in during the one before."""

    def __init__(self, work: Work, there: BlockSet, block: int) -> None:
        self._work = work
        self._there = there
        self._block = block
        self._done = len(there)
        self._empty = 0
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._came, self._written = 0, 0

    def has(self, index: int) -> bool:
        return index in self._there

    def skip(self) -> None:
        """A block turned out to be empty."""
        with self._lock:
            self._empty += 1

    def put(self, index: int) -> None:
        """On disk when it returns."""
        with self._lock:
            self._there.add(index)
            self._done += 1
            self._came += 1
            mine = self._came
        with self._writing:
            if self._written >= mine:  # another sender's write had it
                return
            with self._lock:
                snapshot, upto, done = bytes(self._there), self._came, self._done + self._empty
            self._work.save_blocks(snapshot, done * self._block)
            self._written = upto


class _Sending:
    def __init__(self, reader: BlockReader, journal: _Journal, work: Work, send: Send, seen: Seen) -> None:
        self._reader = reader
        self._journal = journal
        self._work = work
        self._send = send
        self._seen = seen
        self._count = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def run(self, wanted: Iterable[int], senders: int) -> int:
        queue = iter(wanted)
        with ThreadPoolExecutor(senders, thread_name_prefix="upload") as pool:
            futures: list[Future[None]] = [pool.submit(self._sender, queue) for _ in range(senders)]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # also when this process is told to end
                self._stop.set()
        for future in futures:
            future.result()
        return self._count

    def _sender(self, queue: Iterator[int]) -> None:
        while not self._stop.is_set():
            with self._lock:
                index = next(queue, None)
            if index is None:
                return
            self._one(index)

    def _one(self, index: int) -> None:
        self._work.check()
        data = self._reader.read(index)
        if data is None:
            self._journal.skip()
            return
        with self._lock:
            self._count += 1
        if not self._journal.has(index):
            self._send(index, data)
            self._journal.put(index)
        self._seen(index, data)
