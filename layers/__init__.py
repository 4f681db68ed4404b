"""Layers that Keras lacks."""

__all__ = []
