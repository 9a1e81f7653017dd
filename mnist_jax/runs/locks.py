"""A lock for what has one writer at a time: a run, a file of results."""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import filelock

from mnist_jax.errors import BusyError


@contextlib.contextmanager
def hold(folder: Path, stem: str, name: str) -> Iterator[None]:
    """Holds the lock STEM.lock in a folder; STEM.owner says who does.

    The system releases the lock when this process ends, in whatever way. On a disk without such locks the lock is that
    STEM.held exists, which a killed process leaves behind.

    Raises BusyError, with `name`, if another process holds it, OSError if it cannot be written.
    """
    owner, lock = folder / f"{stem}.owner", filelock.FileLock(folder / f"{stem}.lock", timeout=0)
    try:
        try:
            lock.acquire()
        except filelock.Timeout:
            raise
        except (NotImplementedError, OSError):  # Many network disks have no `flock`.
            lock = filelock.SoftFileLock(folder / f"{stem}.held", timeout=0.2)
            lock.acquire()
    except filelock.Timeout:
        who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        gone = f"; if it is gone, remove {lock.lock_file!r}" if isinstance(lock, filelock.SoftFileLock) else ""
        raise BusyError(f"{name} is being written by {who}; wait for it or stop it, or name another{gone}") from None
    try:
        owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        lock.release()
