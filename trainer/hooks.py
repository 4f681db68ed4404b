"""Hooks: callables `(trainer, step, metrics)` that run after each loop; none is needed.

`trainer.summaries` writes scalars, images, text and histograms at that step.
A hook that returns STOP ends the run after a checkpoint.
"""

STOP = "stop"
