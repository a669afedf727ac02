import json
import os
import signal
import time

import pytest

from stepscan.train.lock import NAME, RunLock, RunLockedError


def test_one_holder_at_a_time(tmp_path):
    first = RunLock(tmp_path)
    assert first.note is None
    with pytest.raises(RunLockedError, match=rf"process {os.getpid()} on .* trains here"):
        RunLock(tmp_path)
    first.release()
    second = RunLock(tmp_path)
    first.release()  # twice is harmless, and takes nothing from the second
    with pytest.raises(RunLockedError):
        RunLock(tmp_path)
    assert second.note is None
    second.release()


def test_the_lock_of_the_dead_is_taken_over_and_said(tmp_path):
    pid = os.fork()
    if pid == 0:
        try:
            RunLock(tmp_path)
            time.sleep(60)
        finally:
            os._exit(1)
    while not (tmp_path / NAME).exists() or not (tmp_path / NAME).read_bytes():
        time.sleep(0.01)
    with pytest.raises(RunLockedError, match=f"process {pid} on"):
        RunLock(tmp_path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    lock = RunLock(tmp_path)
    assert f"took over from process {pid}" in lock.note
    lock.release()


def test_a_holder_on_another_host_cannot_be_judged(tmp_path):
    (tmp_path / NAME).write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "then"}))
    with pytest.raises(RunLockedError, match=r"process 1 on elsewhere .* delete .*run\.lock"):
        RunLock(tmp_path)


@pytest.mark.parametrize("torn", ["", '{"host": "els', "[]", "7"])
def test_a_torn_lock_is_no_lock(tmp_path, torn):
    (tmp_path / NAME).write_text(torn)
    RunLock(tmp_path).release()
