"""The teaching material, row by row: the old form fails as documented, the modern form trains through the framework.

S0 customization, S1 extensions, S2 models and training, S3 layers and models,
S4 advanced Keras. A test in this folder names its rows in its docstring; what
is tested elsewhere in full is named here. `rows_test.py` keeps the table true.
"""

_S0, _S1, _S2, _DATA, _S3, _S4 = (
    f"tests/conformance/{file}_test.py"
    for file in ("s0_customization", "s1_extensions", "s2_models", "s2_data", "s3_layers", "s4_advanced")
)

_INTERNAL = [
    "the_old_forms_of_losses_and_metrics_inside_a_functional_model",
    "an_auxiliary_reconstruction_loss_and_its_metric",
]

# row: (what the material asks for, {file: tests without their `test_`})
ROWS = {
    1: ("ScaledDense", {_S0: ["scaled_dense"], "tests/layers/dense_test.py": ["the_modern_form_fits_and_comes_back"]}),
    2: ("a child made in build", {_S0: ["a_child_that_is_built_in_call"]}),
    3: ("weighted cross-entropy", {_S0: ["weighted_crossentropy"]}),
    4: ("three kinds of CNN", {_S0: ["three_kinds_of_cnn", "a_branch_on_a_tensor_inside_a_layer"]}),
    5: ("None gradients", {
        _S0: ["a_gradient_of_none", "gradients_that_are_there"],
        "tests/trainer/diagnosis/diagnostics_test.py": ["the_gallery_is_explained_with_the_right_reason_and_line"],
    }),
    6: ("accuracy and gradient norms to look at", {_S0: ["accuracy_and_gradient_norms_are_to_be_seen"]}),
    7: ("polynomial layer", {_S0: ["a_polynomial_layer_on_digits"]}),
    8: ("class-penalising loss", {_S0: ["losses_that_punish_classes_differently"]}),
    9: ("custom gradient of a clip", {
        _S1: ["a_custom_gradient_in_any_dtype", "a_custom_gradient_that_captures_a_variable"],
        "tests/layers/gradients_test.py": ["the_old_form_holds_in_float32_only", "the_modern_form_holds_everywhere"],
    }),
    10: ("custom gradient of an operation", {_S1: ["layers_whose_gradient_is_not_that_of_their_value"]}),
    11: ("focal loss", {_S1: ["focal_loss_leaves_a_sure_mistake", "binary_focal_loss_at_a_sure_logit"]}),
    12: ("momentum optimizer", {
        _S1: ["the_old_forms_of_a_momentum_optimizer", "a_custom_optimizer_beside_the_standard_one"],
    }),
    13: ("custom against standard optimizer", {_S1: ["a_custom_optimizer_beside_the_standard_one"]}),
    14: ("tensors, NumPy, assignments", {_S2: ["tensors_numpy_and_assignments"]}),
    15: ("add_n and stable sums", {_S2: ["sums_of_losses_are_taken_in_float32"]}),
    16: ("clipnorm and clipvalue", {
        _S2: ["a_keras_optimizer_clips_in_one_way_only", "clipping_trains"],
        "tests/trainer/replicas_test.py": [
            "keras_clips_each_replica_before_the_sum",
            "clips_set_on_a_keras_optimizer_act_after_the_sum",
        ],
    }),
    17: ("model.add_loss", {_S2: _INTERNAL}),
    18: ("model.add_metric", {_S2: _INTERNAL}),
    19: ("auxiliary reconstruction loss", {
        _S2: ["an_auxiliary_reconstruction_loss_and_its_metric"],
        "tests/configs/friedman_reconstruction_test.py": ["it_learns_both"],
    }),
    20: ("MSE, MAE and Huber under noise", {
        _S2: ["the_best_constant_under_noise"],
        "tests/configs/friedman_huber_test.py": ["it_learns_in_spite_of_outliers_where_the_squared_error_does_not"],
    }),
    21: ("wide & deep, self-normalizing nets, batch norm, dropout, schedules", {
        _S2: ["wide_and_deep_self_normalising_batch_norm_dropout_and_a_schedule"],
        "tests/configs/wide_deep_test.py": ["it_learns_what_the_deep_part_alone_cannot"],
        "tests/configs/snn_deep_test.py": ["it_learns_and_the_layers_are_in_tensorboard"],
    }),
    22: ("everything of one's own", {_S2: ["everything_of_ones_own"]}),
    23: ("SparseTensor", {_DATA: ["sparse_batches", "a_sparse_batch_without_rows_breaks_a_replica"]}),
    24: ("RaggedTensor", {
        _DATA: ["ragged_batches"],
        "tests/layers/ragged_test.py": [
            "the_old_form_fails_on_a_ragged_tensor",
            "functional_models_train_alike_on_two_replicas_and_come_back",
            "a_graph_is_traced_once_for_rows_of_any_length",
        ],
    }),
    25: ("string tensors", {_DATA: ["string_batches"]}),
    26: ("TensorArray and sets", {_DATA: ["tensor_arrays_and_sets"]}),
    27: ("queues", {_DATA: ["queues"]}),
    28: ("tf.image, tf.signal, JIT", {_DATA: ["images_and_signals", "the_loop_under_xla"]}),
    29: ("export", {_DATA: ["an_exported_graph_runs_outside_of_our_code", "a_trained_model_as_tflite"]}),
    30: ("MyCustomLayer", {_S3: ["my_custom_layer"]}),
    31: ("MyCustomModel", {_S3: ["my_custom_model"]}),
    32: ("two inputs, two outputs, a shared layer", {
        _S3: ["two_outputs_in_the_old_form", "two_inputs_two_outputs_and_a_shared_layer"],
    }),
    33: ("freezing and unfreezing", {_S3: ["freezing_and_unfreezing"]}),
    34: ("CustomDense", {_S4: ["the_old_custom_dense", "custom_dense_is_routed_to_two_optimizers"]}),
    35: ("eager execution, to debug", {_S4: ["a_print_in_call"]}),
}  # fmt: skip
