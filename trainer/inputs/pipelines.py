"""The structure of a tf.data pipeline. TensorFlow's private methods for it are called here only."""

_PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "GeneratorDataset"}
_OTHERS = {"IteratorGetNext", "IteratorGetNextAsOptional"}  # an iterator that other code may read as well


def inputs_of(dataset):
    """Returns the datasets that a transformation reads."""
    return list(dataset._inputs())


def stages_of(dataset):
    """Returns a dataset and all datasets that it reads, each before its inputs."""
    stages = [dataset]
    for stage in stages:  # grows
        stages += inputs_of(stage)
    return stages


def traced_functions(dataset):
    """Returns the traced functions of all transformations of a dataset."""
    return [wrapper.function for stage in stages_of(dataset) for wrapper in stage._functions()]


def function_of(stage):
    """Returns the user's Python function of a map, flat_map or interleave, None of other transformations."""
    return getattr(getattr(stage, "_map_func", None), "_func", None)


def runs_python(dataset):
    """True if a pipeline calls Python code, or reads an iterator: reading it twice may give different elements."""
    for function in traced_functions(dataset):
        graph = function.graph.as_graph_def()
        nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
        if any(node.op in _PYTHON | _OTHERS for node in nodes):
            return True
    return False
