"""SIGINT and SIGTERM end a run after the loop and a checkpoint, a second one immediately; SIGUSR1 saves."""

import os
import signal
import threading

from trainer import console

_ENDING = (signal.SIGINT, signal.SIGTERM)
_PROMPT = 2  # seconds in which a signal should take effect


class Signals:
    """A context that records signals.

    Python runs signal handlers only when the compiled loop returns, and merges
    repeated signals. A thread therefore reads their numbers as they arrive
    (`signal.set_wakeup_fd`): it prints a line at the first signal and ends the
    process at the second.

    Args:
        leave: whether a second signal may end the process, as on the command
            line; otherwise it raises KeyboardInterrupt after the loop.

    Attributes:
        received: None, "SIGINT" or "SIGTERM".
    """

    def __init__(self, leave=False):
        self.received, self._leave, self._save = None, leave, False
        self._previous, self._pipe, self._thread, self._loops = {}, None, None, 0

    def check_latency(self, seconds, steps, may_end_early):
        """Warns once if a signal would wait more than 2 s for a loop of `steps` steps, unless it may end early.

        The first loop is ignored: it traces.
        """
        self._loops += 1
        if self._loops == 2 and seconds > _PROMPT and steps > 1 and not may_end_early:
            console.warning(
                f"A signal waits for the end of a loop, which takes {seconds:.1f} s. run.steps_per_loop = "
                f"{max(1, int(_PROMPT * steps / seconds))} would respond within {_PROMPT} s."
            )

    def take_save_request(self):
        """Returns whether SIGUSR1 arrived since the last call."""
        asked, self._save = self._save, False
        return asked

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self  # other handlers are kept
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._previous = {number: signal.signal(number, self._handle) for number in (*_ENDING, signal.SIGUSR1)}
        self._previous_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._read, name="signals", daemon=True)
        self._thread.start()
        return self

    def _handle(self, number, frame):
        """The signal handler; runs in the main thread."""
        if number == signal.SIGUSR1:
            self._save = True
        elif self.received and not self._leave:
            raise KeyboardInterrupt
        else:
            self.received = signal.Signals(number).name

    def _read(self):
        came = 0
        while numbers := os.read(self._pipe[0], 64):
            for number in numbers:
                if number == signal.SIGUSR1:
                    console.line("SIGUSR1: saving after this loop.")
                elif number in _ENDING:
                    came += 1
                    self._answer(number, came)

    def _answer(self, number, came):
        name = signal.Signals(number).name
        if came == 1:
            console.line(f"{name}: finishing the loop, then saving. A second signal exits at once.")
        elif self._leave:
            console.line(f"{name} again: exiting without a further checkpoint.")
            console.show_cursor()
            os._exit(128 + number)

    def __exit__(self, *exception):
        if self._thread is None:
            return
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._pipe[1])  # ends the thread
        self._thread.join()
        os.close(self._pipe[0])
        self._thread = None
