"""Files that are whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Generator[Path]:
    """Gives a temporary path in the target's folder and renames it to `target` on success.

    A program killed inside the block leaves the old target as it was; an exception also removes
    the temporary file. The temporary name keeps the suffix, since writers choose a format by it.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{target.stem}.", suffix=f".part{target.suffix}", dir=target.parent
    )
    os.close(handle)
    path = Path(name)
    try:
        yield path
        with open(path, "rb") as written:
            os.fsync(written.fileno())
        path.chmod(0o666 & ~_umask())
        os.replace(path, target)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
