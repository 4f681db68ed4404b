"""Strategies, the cluster, and how a global batch is split over replicas and summed again.

Here: everything that depends on the number of replicas or workers. Not here: losses, gradients, optimizers.

Used from outside:
    cluster: (the module), batches_per_call, gathered, worker_count, worker_index
    distribution: distribute, make_strategy, replica_values, sum_replicas, unpack
    shards: Shard
"""
