"""Makes batches: what a source is, arrays in memory, TFRecord files, specs.

Here: what depends on the data alone. Not here: replicas (a source knows global batches only) and models.

Used from outside:
    array_source: ArraySource
    batches: batch_size_of, cut, from_plain, is_plain, leaves, map_leaves, not_finite, part_of_spec, sized_spec,
        spec_from_json, spec_of, spec_to_json, static_batch_size, to_plain, units_of, without_none
    pipelines: function_of, inputs_of, stages_of, traced_functions
    record_source: find_records, RecordSource
    source: leaves, NoBatches, Source
    user_data: as_source
"""
