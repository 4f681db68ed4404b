"""Checkpoints, the state they hold, their retention, loading, foreign weight files, export.

Here: files of the run folder that are read again. Not here: reports (outer_loop) and the config (config).

Used from outside:
    checkpoints: Checkpoints
    export: (the module)
    loading: (the module), load
    run_state: RunState
    state: restore, state_of
"""
