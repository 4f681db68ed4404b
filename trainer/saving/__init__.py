"""Checkpoints, the state they hold, which of them are kept, loading, other people's weight files, export.

Here: what is written to the run folder to be read again. Not here: reports (outer_loop) and the config (config).

Used from outside:
    checkpoints: Checkpoints
    export: (the module)
    loading: (the module), load
    run_state: RunState
    state: restore, state_of
"""
