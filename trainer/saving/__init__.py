"""Checkpoints: their state, their retention, loading; weight files of other programs; export.

Here: files of the run folder that are read again. Not here: reports (outer_loop) and the config (config).

Used from outside:
    checkpoints: Checkpoints
    export: (the module)
    loading: (the module), load
    run_state: RunState
    state: restore, state_of
"""
