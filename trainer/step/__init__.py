"""What one step is made of: building, losses and metrics of the default Trainer, reductions, the guard, micro-batches.

Here: what is traced, and what prepares it. Not here: files, the terminal, gin, and the loop over loops.

Used from outside:
    autograph: convert, users_errors
    building: build, check_arguments
    fetching: fetch, fetch_if
    first_batch: build_for, check_first, check_labels, finite_source
    guard: NonFiniteError
    internals: (the module)
    losses: check_loss, losses_by_output
    metrics: gather_with_masks, update_by_output, weighted
    micro_batches: accumulate
    outputs: by_output, keras_masks, set_keras_mask
    reduction: make_term, penalty_terms
    replica_pass: CurrentPass
    replica_state: seed_replicas, tracing_context
    scopes: check_iterator
    variables: check_watched, is_layer_graph, is_variable, name_layers, numbered_names, raw
"""
