"""Ctrl-C and signals like it, held back while work is at hand that they would lose."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interruption:
    """A signal handler that raises KeyboardInterrupt once, and only where it is let through.

    Attributes
    ----------
    came : bool
        Whether there was a signal.
    """

    def __init__(self) -> None:
        self.came = False
        self._is_let_through = False

    def __call__(self, *_: Any) -> None:
        """Take a signal."""
        is_first, self.came = not self.came, True
        if is_first and self._is_let_through:
            raise KeyboardInterrupt

    @contextmanager
    def let_through(self, through: bool = True) -> Iterator[None]:
        """Raise KeyboardInterrupt at the first signal, at once if it came before; or not."""
        before, self._is_let_through = self._is_let_through, through
        try:
            if through and self.came:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_let_through = before


@contextmanager
def held_back(*names: str) -> Iterator[Interruption]:
    """Hold back signals such as "SIGINT", which is Ctrl-C, unless they are ignored or handled.

    Signals that a system does not have, as Windows has no SIGHUP, are left out. Inside of another
    ``held_back`` the handlers stay, and the Interruption is that one's. Only the main thread gets
    signals, so that in others there are none to hold back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Interruption()
        return
    for each in signal.valid_signals():
        if isinstance(outer := signal.getsignal(each), Interruption):
            with outer.let_through(False):
                yield outer
            return
    interruption = Interruption()
    before = {}
    for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            before[number] = signal.signal(number, interruption)
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
