"""How a run ends before its time: a signal or its time limit, answered where it can go on from later."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

GRACE = 30.0
"""Seconds from a signal to the end of a run that meets no point to go on from: it draws, or it hangs. A run whose
points lie further apart has twice as long as they do."""
TIME_IS_OVER = 124
"""Exit status at the time limit, that of timeout(1); after a signal it is 128 + its number."""


class Stopped(BaseException):
    """A run that was told to stop. No `Exception`, as `KeyboardInterrupt` is none: nothing else should catch it.

    Attributes:
        status: the exit status. step: the one of its last checkpoint, None where it was ended in between.
    """

    def __init__(self, status: int, step: int | None = None):
        self.status, self.step = status, step
        why = "--time-limit" if status == TIME_IS_OVER else signal.Signals(status - 128).name
        after = "" if step is None else f" after step {step}; go on with --resume"
        super().__init__(f"stopped by {why}{after}")


class Stopping:
    """Watches for SIGINT, SIGTERM and the time limit while a run is open; a context manager.

    The first signal sets `status`, and the run stops at the next point from which it can go on (`Run.keep`). A
    second one ends it at once: SIGINT by `KeyboardInterrupt`, SIGTERM by `Stopped`. So does the first before any
    such point, where there is nothing to keep. A run that meets none within `GRACE` seconds is ended then; one that
    is finished sooner has nothing left to go on with, and ends as if nobody had told it.

    Signals are watched in the main thread only, and those that the process ignores stay ignored.

    Args:
        limit: seconds that the run may take; None: as many as it needs.
    """

    def __init__(self, limit: float | None = None):
        self.agreed: int | None = None
        self._end = math.inf if limit is None else time.monotonic() + limit
        self._met, self._last, self._longest = False, time.monotonic(), 0.0
        self._told, self._process = 0, os.getpid()
        self._before: dict[int, Any] = {}

    @property
    def status(self) -> int:
        """The exit status with which the run has to stop; 0 as long as it may go on.

        Where several processes train together it is what they have `agreed` on.
        """
        return self.own if self.agreed is None else self.agreed

    @property
    def own(self) -> int:
        """What this process would answer by itself."""
        if self._told:
            return 128 + self._told
        return TIME_IS_OVER if time.monotonic() >= self._end else 0

    def meet(self) -> None:
        """A point from which the run could go on."""
        now = time.monotonic()
        self._met, self._last, self._longest = True, now, max(self._longest, now - self._last)

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            _in_a_child(number)
        elif self._met and not self._told and number != signal.SIGALRM:
            self._told = number
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._receive)
            signal.setitimer(signal.ITIMER_REAL, max(GRACE, 2 * self._longest))
            _say(f"\n{signal.Signals(number).name}: the run stops where it can go on, or at once if told once more\n")
        else:
            self._end_at_once(self._told if number == signal.SIGALRM else number)

    def _end_at_once(self, number: int) -> None:
        if self._told:
            signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(128 + number)


def _in_a_child(number: int) -> None:
    """A forked process, such as one that loads data, leaves SIGINT to the run and ends by any other signal."""
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _say(text: str) -> None:
    """Write to stderr, past its buffers: the signal may have come while they were being written to."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
