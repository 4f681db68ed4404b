"""A TensorBoard profile of a range of steps."""

import tensorflow as tf

from trainer import console


class Profile:
    """Starts TensorFlow's profiler at one step and stops it at another; loops end at both.

    Args:
        steps: (first, last), the steps first to last - 1 are profiled; None: none.
        folder: the TensorBoard folder that the profile is written to; None: none is written.
    """

    def __init__(self, steps, folder):
        self._steps, self._folder = (steps or ()) if folder is not None else (), folder
        self._runs = False

    def next_stop(self, step, stop):
        """Returns the step at which the loop from `step` ends, `stop` or earlier."""
        return min([stop, *(boundary for boundary in self._steps if boundary > step)])

    def look(self, step):
        """Starts or stops the profiler, before the loop that begins at `step`."""
        if self._steps and not self._runs and self._steps[0] <= step < self._steps[1]:
            tf.profiler.experimental.start(str(self._folder))
            self._runs = True
        elif self._runs and step >= self._steps[1]:
            self.close()

    def close(self):
        """Stops the profiler if it runs, and writes the profile."""
        if self._runs:
            self._runs = False
            tf.profiler.experimental.stop()
            console.line(
                f"The profile from step {self._steps[0]} on is in {self._folder}; TensorBoard needs `xprof` to show it."
            )
