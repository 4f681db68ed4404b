"""Makes batches: what a source is, arrays in memory, TFRecord files, other people's data; what a batch consists of.

Here: what depends on the data alone. Not here: replicas (a source knows global batches only) and models.

Used from outside:
"""
