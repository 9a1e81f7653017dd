"""A lock for what has one writer at a time: a run, a file of results."""

import contextlib
import errno
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

import filelock

from mnist_jax.errors import BusyError

# What a disk without `flock` answers, as many network disks do.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextlib.contextmanager
def hold(folder: Path, stem: str, name: str) -> Iterator[None]:
    """Holds the lock STEM.lock in a folder; STEM.owner says who does.

    The system releases the lock when this process ends, in whatever way. On a disk without such locks the lock is that
    STEM.held exists, which a killed process leaves behind.

    Raises BusyError, with `name`, if another process holds it, OSError if it cannot be written.
    """
    owner = folder / f"{stem}.owner"
    with contextlib.ExitStack() as stack:
        lock = filelock.FileLock(folder / f"{stem}.lock", timeout=0)
        try:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # Where there is no `flock`, it may fall back itself.
                    stack.enter_context(lock)
            except (NotImplementedError, OSError) as error:
                if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                    raise
                lock = filelock.SoftFileLock(folder / f"{stem}.held", timeout=0.2)
                stack.enter_context(lock)
            owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        except filelock.Timeout:
            who = "another process"
            with contextlib.suppress(OSError):
                who = owner.read_text(encoding="utf-8")
            gone = f"; if it is gone, remove {lock.lock_file!r}" if isinstance(lock, filelock.SoftFileLock) else ""
            raise BusyError(
                f"{name} is being written by {who}; wait for it or stop it, or name another{gone}"
            ) from None
        yield
