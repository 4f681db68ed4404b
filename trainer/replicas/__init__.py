"""Strategies, the cluster, and how a global batch is split over replicas and summed again.

Here: everything that asks how many replicas or workers there are. Not here: losses, gradients, optimizers.

Used from outside:
    cluster: (the module), batches_per_call, gathered, worker_count, worker_index
    distribution: distribute, make_strategy, replica_values, Shard, sum_replicas, unpack
    shares: Shard
"""
