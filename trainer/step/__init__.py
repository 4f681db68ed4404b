"""The parts of a step: building, losses and metrics of the default Trainer, reductions, the guard, micro-batches.

Here: traced code, and the code that prepares it. Not here: files, the terminal, gin, the outer loop.

Used from outside:
    autograph: convert, users_errors
    building: build, Built, check_arguments, make_global_step, not_built
    evaluation: Evaluation
    first_batch: build_for, check_first, check_labels
    guard: NonFiniteError
    internals: (the module)
    loops: CALL_SPEC, check_chunk, count_elements, take_steps
    losses: check_loss, losses_by_output
    metrics: check_metrics, update_by_output, weighted
    micro_batches: accumulate
    outputs: by_output, keras_masks, set_keras_mask
    reduction: global_shares, LossKey, make_term, penalty_terms
    replica_pass: CurrentPass, ReplicaPass
    replica_state: seed_replicas, tracing_context, unchanged
    reports: loss_entries, Report
    scopes: check_iterator
    variables: check_watched, is_layer_graph, is_variable, name_layers, numbered_names, raw, read, restore
"""
