"""Sources of batches: the Source interface, arrays in memory, TFRecord files, specs.

Here: code that depends on the data only. Not here: replicas (a source yields global batches) and models.

Used from outside:
    array_source: ArraySource
    batches: batch_size_of, cut, from_plain, is_plain, leaves, map_leaves, not_finite, part_of_spec, sized_spec,
        spec_from_json, spec_of, spec_to_json, static_batch_size, to_plain, units_of, without_none
    pipelines: function_of, inputs_of, stages_of, traced_functions
    record_source: find_records, RecordSource
    source: leaves, NoBatches
    user_data: as_source
"""
