"""The kinds of bad gradients: a sentence and a fix for each. Imports no TensorFlow.

`diagnostics.py` finds the operation. The kind follows from the operation's type
in the graph, not from names.
"""

import dataclasses

from trainer.config.statements import shown

# kind: (cause, fix)
KINDS = {
    # None: no gradient
    "unused": ("the losses of its group do not depend on it", "Use it, remove it, or list it in `Trainer.frozen`."),
    "other losses": ("only losses that its group does not minimize depend on it",
        "Name them in the group's `losses`, or move the variable to their group."),
    "argmax": ("argmax has no gradient",
        "Train on the logits (cross-entropy), or use softmax, Gumbel-softmax or layers.StraightThrough."),
    "cast": ("a cast to integers or booleans has no gradient",
        "Stay in floating point, or use layers.StraightThrough."),
    "round": ("rounding has no gradient", "Use layers.StraightThrough, or train without rounding."),
    "comparison": ("a comparison has no gradient",
        "Use a smooth form (sigmoid of the difference, hinge), or layers.StraightThrough."),
    "stop_gradient": ("a stop_gradient ends the gradient here",
        "Remove it, or list the variable in `Trainer.frozen` if this is intended."),
    "numpy_function": ("a NumPy function has no gradient",
        "Write it with tf or keras.ops, or wrap it in tf.custom_gradient."),
    "string": ("strings have no gradient", "Keep strings in the input pipeline."),
    "assignment": ("a value that was assigned to a variable and read again has no gradient",
        "Use the value itself; assign only state that must persist."),
    "indices": ("indices have no gradient",
        "Use the sorted or picked values themselves, or a soft form (softmax weights)."),
    "integer": ("the result is not floating-point and has no gradient", "Stay in floating point up to the loss."),
    "custom_gradient": ("the custom gradient returns None for it",
        "Return a gradient for every input in the `grad` function."),
    "no gradient": ("TensorFlow has no gradient for this operation",
        "Compose it of other operations, or wrap it in tf.custom_gradient."),
    "random": ("samples have no gradient",
        "Use a reparameterised sample (mean + std * noise, Gumbel-softmax) or a score-function loss."),
    "integer variable": ("the variable is not floating-point",
        "Create it with a floating dtype, or with trainable=False."),
    # zero: a gradient of zeros
    "sign": ("the gradient of sign is zero everywhere", "Use tanh, softsign or layers.StraightThrough."),
    "dead": ("all units are dead: every input of the ReLU is <= 0",
        "Lower the learning rate, check the bias and the scale of the inputs, or use leaky_relu, elu or gelu."),
    "saturated": ("it is saturated: its inputs are so large that its gradient rounds to zero",
        "Scale or normalize the inputs, use a loss on logits, or use a wider dtype."),
    "clipped": ("every value lies in the clipped region, where the gradient is zero",
        "Widen the bounds, scale the input, or clip with a straight-through gradient (layers.StraightThrough)."),
    "zero factor": ("it is multiplied by zeros",
        "Check the other factor: a mask, a weight, an input or a kernel is all zero."),
    "selected": ("the selection takes none of its values", "Check the condition: it never selects this branch."),
    "py_function": ("the Python function leaves TensorFlow (.numpy(), NumPy), so that its gradient is zero",
        "Write it with tf or keras.ops, or wrap it in tf.custom_gradient."),
    "underflow": ("the gradient is too small for the dtype and rounds to zero",
        "Use bfloat16 or float32 here, or scale the loss."),
    "zero gradient": ("after this operation the gradient is zero", "Look at its inputs."),
    # not finite
    "where": ("its value is not finite at entries that are discarded later, and 0 * inf is NaN in the gradient",
        "Make the argument safe first (double where): safe = tf.where(ok, x, 1.0); tf.where(ok, f(safe), 0.0)."),
    "root": ("the slope of the square root is infinite at 0",
        "Add an epsilon inside: tf.sqrt(x + 1e-12); for a norm tf.sqrt(tf.reduce_sum(x * x) + 1e-12)."),
    "log": ("the logarithm of 0 or of a negative number",
        "Compute the loss from logits (from_logits=True, log_softmax), or tf.math.log(x + 1e-12)."),
    "division": ("a division by 0", "Use tf.math.divide_no_nan, or add an epsilon to the denominator."),
    "power": ("a power of 0 or of a negative number", "Keep the base above 0: (x + 1e-12) ** p."),
    "slope": ("its slope is infinite at the edge of its domain",
        "Keep the input away from the edge: tf.clip_by_value(x, -1 + 1e-6, 1 - 1e-6)."),
    "overflow": ("the result is too large for its dtype",
        "Use a stable form (logsumexp, softplus, logits), float32 or bfloat16 instead of float16, or smaller "
        "inputs."),
    "data": ("the batch holds values that are not finite",
        "Clean the data: tf.debugging.check_numerics in the input pipeline finds the file."),
    "weights": ("the variable holds values that are not finite already",
        "Restore an earlier checkpoint; guard='skip' skips such steps."),
    "not finite": ("the first result that is not finite", "Look at its inputs."),
    "inside": ("it happens inside the function, branch or loop that is called here",
        "Call its body directly to see the line."),
    "unknown": ("no operation was found that explains it",
        "Inspect it in Python: Trainer.compile='eager' and tf.print."),
}  # fmt: skip

_NONE = {
    "argmax": ("ArgMax", "ArgMin"),
    "cast": ("Cast",),
    "round": ("Round", "Rint", "Floor", "Ceil"),
    "comparison": ("Greater", "GreaterEqual", "Less", "LessEqual", "Equal", "NotEqual", "ApproximateEqual"),
    "stop_gradient": ("StopGradient", "PreventGradient"),
    "numpy_function": ("PyFunc", "PyFuncStateless", "EagerPyFunc"),
    "indices": ("TopKV2", "TopK", "Unique", "UniqueV2", "Where", "NonMaxSuppressionV3", "MaxPoolWithArgmax"),
    "random": ("Multinomial", "StatelessMultinomial", "RandomPoissonV2", "StatelessRandomBinomial"),
}
_ZERO = {
    "sign": ("Sign",),
    "dead": ("Relu", "Elu", "Selu", "LeakyRelu"),
    "saturated": ("Sigmoid", "Tanh", "Softmax", "LogSoftmax", "Softplus", "Softsign", "Erf", "Erfc", "Exp",
                  "SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits"),
    "clipped": ("ClipByValue", "Relu6", "Minimum", "Maximum"),
    "zero factor": ("Mul", "MatMul", "BatchMatMulV2", "Einsum", "Conv1D", "Conv2D", "Conv3D", "RealDiv",
                    "DepthwiseConv2dNative", "MulNoNan", "SparseDenseMatMul", "Square", "SquaredDifference", "Abs",
                    "Pow"),
    "selected": ("SelectV2", "Select", "GatherV2", "GatherNd", "ResourceGather", "Slice", "StridedSlice"),
    "py_function": ("EagerPyFunc",),
    "underflow": ("Cast",),
}  # fmt: skip
_NOT_FINITE = {
    "log": ("Log", "Log1p", "Xlogy", "Xlog1py", "Lgamma"),
    "root": ("Sqrt", "Rsqrt"),
    "division": ("RealDiv", "Div", "Reciprocal", "Inv", "Xdivy", "FloorDiv", "Atan2"),
    "power": ("Pow",),
    "slope": ("Acos", "Asin", "Atanh", "Acosh", "Erfinv", "Ndtri"),
    "weights": ("ReadVariableOp", "ResourceGather"),
    "data": ("Placeholder",),
}
_TABLES = {
    table: {operation: kind for kind, operations in kinds.items() for operation in operations}
    for table, kinds in (("none", _NONE), ("zero", _ZERO), ("not finite", _NOT_FINITE))
}


@dataclasses.dataclass(frozen=True)
class Reason:
    """The reason for a bad gradient.

    Attributes:
        kind: a key of KINDS.
        text: a sentence.
        place: "file:line" of the user's code that created the operation, or None.
        cure: the fix.
    """

    kind: str
    text: str
    place: str | None = None
    cure: str = ""

    def __str__(self):
        file, _, line = (self.place or "").rpartition(":")
        return self.text + (f"\n  at {shown(file)}:{line}" if file else "") + (f"\n  {self.cure}" if self.cure else "")


def reason(kind, more="", place=None):
    """Returns the Reason of a kind; `more` is appended to its sentence."""
    text, cure = KINDS[kind]
    return Reason(kind, text[0].upper() + text[1:] + more + ".", place, cure)


def kind_of(table, operation, default):
    """Returns the kind of an operation's type ("ArgMax") in the table "none", "zero" or "not finite"."""
    return _TABLES[table].get(operation, default)


def cure_of_error(error):
    """Returns the fix for a well-known exception of traced code whose message is hard to read, or None."""
    text = f"{type(error).__name__}: {error}"
    if "OperatorNotAllowedInGraphError" in text or "as a Python `bool`" in text:
        return (
            "A Python `if`, `while`, `and` or `not` on a tensor inside a layer's `call`: Keras disables "
            "AutoGraph there. Use "
            "tf.cond or tf.where, or decorate that `call` with @tf.function."
        )
    if "gradient registry has no entry for" in text:
        return (
            "`python -m trainer.check gradients --gin_file=...` names the operation's line and the variables behind "
            "it. " + KINDS["no gradient"][1]
        )
    if "numpy() is only available when eager" in text or "has no attribute 'numpy'" in text:
        return (
            "`.numpy()` works only outside of traced code, and has no gradient. Use tf or keras.ops; print "
            "values with tf.print, or use Trainer.compile='eager'."
        )
    return None
