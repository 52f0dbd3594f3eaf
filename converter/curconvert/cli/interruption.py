"""Handles signals: the first one stops a conversion after the current step, the second one immediately."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy, which it needs, would slow every command down
    from curconvert_runtime.checks.fidelity import Progress

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal has stopped the work.

    Attributes:
        exit_code: 128 plus the signal's number, as in shells.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def stoppable(progress: Progress, *, announce: bool) -> Iterator[Progress]:
    """Yield a progress callback that raises `Interrupted` after SIGINT or SIGTERM; another signal raises it at once.

    The callback runs after a step is finished and recorded, so no work is lost.

    Args:
        progress: Called first.
        announce: Say on stderr that the first signal was heard.
    """
    pending: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if pending:
            raise Interrupted(number)
        pending.append(number)
        # Not print: a signal may come while the same stream is being written to.
        if announce:
            with suppress(OSError):  # nobody may be reading
                os.write(2, b"\nstopping after the current step; a second signal stops at once\n")

    def report(stage: str, done: int, total: int) -> None:
        progress(stage, done, total)
        if pending:
            raise Interrupted(pending[0])

    # Ignored signals stay so: a script's background jobs are started with SIGINT ignored.
    before = {number: signal.getsignal(number) for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handle)
        yield report
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
