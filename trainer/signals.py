"""SIGINT and SIGTERM end a run after the loop and a checkpoint; the second one ends it at once."""

import signal

from trainer import console


class Signals:
    """A context in which the two signals are noted.

    Attributes:
        received: None, "SIGINT" or "SIGTERM".
    """

    def __init__(self):
        self.received, self._previous = None, {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:
                return self  # not the main thread: whoever owns the signals keeps them
        return self

    def _note(self, number, frame):
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        console.line(f"{self.received}: finishing the loop, then saving. Once more leaves at once.")

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
