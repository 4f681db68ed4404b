"""Makes batches: the interface of a source, arrays in memory, TFRecord files, users' datasets, specs.

Here: code that depends on the data alone. Not here: replicas (sources yield global batches) and models.

Used from outside:
    array_source: ArraySource
    batches: batch_size_of, cut, from_plain, is_plain, leaves, map_leaves, not_finite, shard_spec, sized_spec,
        spec_from_json, spec_of, spec_to_json, static_batch_size, to_plain, units_of, without_none
    pipelines: function_of, inputs_of, stages_of, traced_functions
    record_source: find_records, RecordSource
    source: leaves, NoBatches, Source
    user_data: as_source
"""
