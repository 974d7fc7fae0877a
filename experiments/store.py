"""Where finished runs are kept: a file of JSON lines that processes append to under a lock.

JSON lines and not a database, since this file is what is committed: a reader sees each run as a line and each change as a
difference of lines, and there is no export that could leave one out. What a database would give is had from three rules.
A line is written whole, under an exclusive lock of the file, and reaches the disk before `append` returns. Bytes after the
last line's end are what a process that died was writing: never a finished run; the next to append cuts them off. A run
is computed under a lock of its own, which the system lets go of when its process ends in whatever way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from experiments.runs import Record, Run


class Store:
    """The records in a file, by key; the file and its folder are made with the first record."""

    def __init__(self, path: Path):
        self.path = path
        self._records: dict[str, Record] = {}
        self._read = 0  # bytes that `_records` covers

    def records(self) -> dict[str, Record]:
        """All finished runs, in the order in which they were finished; what other processes have appended included.

        Raises ValueError naming the line that is no record, or the second one of a run.
        """
        if not self.path.exists():
            return {}
        with open(self.path, "rb") as file:
            self._take(file)
        return dict(self._records)

    def _take(self, file: IO[bytes]) -> int:
        """Read the lines that are new; the offset where whole lines end."""
        if os.fstat(file.fileno()).st_size < self._read:  # the file is another one
            self._records, self._read = {}, 0
        file.seek(self._read)
        whole = file.read().rpartition(b"\n")
        for line in (whole[0] + whole[1]).splitlines():
            number = len(self._records) + 1
            try:
                record = Record.parse(line.decode())
            except ValueError as error:
                raise ValueError(f"{self.path.name}, line {number}: {error}") from None
            if record.run.key in self._records:
                raise ValueError(f"{self.path.name}, line {number}: a second record of run {record.run.key}")
            self._records[record.run.key] = record
        self._read += len(whole[0] + whole[1])
        return self._read

    def append(self, record: Record) -> Record:
        """Keep a finished run; it is on the disk when this returns. Returns the record that is kept: if another process
        was first, that one's.

        Raises ValueError where the two results differ: what a run gives depends on its configuration alone.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = self._take(file)
            kept = self._records.get(record.run.key)
            if kept is not None:
                if kept.result != record.result:
                    raise ValueError(f"run {record.run.key} gave two results: {kept.result} and {record.result}")
                return kept
            file.truncate(end)
            file.write(record.line().encode())
            file.flush()
            os.fsync(file.fileno())
            self._take(file)
        return record

    def complete(self, run: Run, compute: Callable[[Run], Record]) -> Record:
        """The record of a run, computed unless it is there; one process at a time computes it, and others wait for it."""
        with self._reserved(run):
            return self.records().get(run.key) or self.append(compute(run))

    @contextlib.contextmanager
    def _reserved(self, run: Run) -> Iterator[None]:
        folder = self.path.with_name(self.path.name + ".running")
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / run.key
        with open(lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
            lock.unlink(missing_ok=True)  # who waits for it now finds the record
