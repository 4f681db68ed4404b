"""What one step is made of: building, losses and metrics of the default Trainer, reductions, the guard, micro-batches.

Here: what is traced, and what prepares it. Not here: files, the terminal, gin, and the loop over loops.

Used from outside:
    autograph: convert, users_errors
    building: build, check_arguments, check_batch, check_labels
    fetching: fetch, fetch_if
    guard: NonFiniteError
    internals: (the module)
    micro_batches: accumulate
    objectives: (the module)
    replica_state: average_replica_state, fork_seeds, tracing_context
    tally: (the module), Report
    variables: is_variable, name_layers, raw
"""
