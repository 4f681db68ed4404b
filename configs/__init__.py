"""Shipped experiments: one gin file and one Python file each; `base.gin` holds what all of them share."""
