"""Contexts in, text out: decoding over [memory ; local], evidence, and `Memory` (a model with a bank)."""
