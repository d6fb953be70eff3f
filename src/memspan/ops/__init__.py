"""Tensors in, tensors out: pooling, scoring and memory attention. No configuration, no files, no collectives."""
