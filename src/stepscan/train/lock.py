"""One trainer per run folder.

The lock is the kernel's (flock), so it ends with its process however that dies. The file beside it
says who holds it, and guards against a holder on another host that this kernel cannot see.
"""

import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

NAME = "run.lock"


class RunLockedError(ValueError):
    """Another trainer works in this folder."""


class RunLock:
    """Held from construction until `release`. `note` says whose dead lock was taken over."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.note: str | None = None
        self._file: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(folder)
        except BaseException:
            os.close(self._file)
            self._file = None
            raise

    def _take(self, folder: Path) -> None:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(self.path.read_bytes())
            raise RunLockedError(
                f"{folder}: {_name(holder)} trains here; wait for it, or choose another folder"
            ) from None
        holder = _holder(self.path.read_bytes())
        if holder:
            if holder.get("host") != socket.gethostname():
                raise RunLockedError(
                    f"{folder}: {_name(holder)} may still train here; "
                    f"if it is dead, delete {self.path}"
                )
            self.note = f"took over from {_name(holder)}, which ended without saying so"
        us = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(us).encode(), 0)

    def release(self) -> None:
        """Let others in. The file stays, empty: deleting it would race with the next holder."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None


def _holder(content: bytes) -> dict[str, object]:
    try:
        holder = json.loads(content)
    except ValueError:  # empty, or its writer died within: the kernel's lock is the one that counts
        return {}
    return holder if isinstance(holder, dict) else {}


def _name(holder: dict[str, object]) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('started')})"
