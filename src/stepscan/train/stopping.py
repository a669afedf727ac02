"""Ctrl-C and SIGTERM: the first asks the loop to stop after this step, the second is immediate."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether somebody asked to stop; `128 + signal` is the exit code they expect."""

    signal: "signal.Signals | None" = None

    def __bool__(self) -> bool:
        """True once a signal came."""
        return self.signal is not None


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Catch the signals while the block runs. Outside the main thread nothing can be caught."""
    stop = Stop()

    def ask(number: int, _: FrameType | None) -> None:
        if stop:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        stop.signal = signal.Signals(number)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
