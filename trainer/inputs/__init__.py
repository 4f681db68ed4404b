"""Makes batches: what a source is, arrays in memory, TFRecord files, specs.

Here: what depends on the data alone. Not here: replicas (a source knows global batches only) and models.

Used from outside:
    array_source: ArraySource
    finite_inputs: not_finite
    record_source: find_records, RecordSource
    source: batch_size_of, check_position, leaves, Source
    specs: (the module)
"""
