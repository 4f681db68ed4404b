"""Explains errors in gradients, data and exceptions; implements the checks of `python -m trainer.check`.

Here: code that examines a model, a batch, a run folder or an exception. Not here: anything that a step needs;
a run without errors executes nothing of this wing but the audit.

Used from outside:
    audit: (the module)
    diagnostics: explain_gradients
    explain: (the module)
    inputs: cause_in_data, located
    learning_rate: range_test
    missing_gradients: place_of_read, reasons_for_none
    replay: Replay
    replicas: compare
    resume: (the module)
    speed: Speed
    tpu: examine
    xla: check_compilable, compiling
"""
