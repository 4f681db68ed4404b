"""Examples: one gin file and one Python file each; `base.gin` has the bindings that all of them share."""
