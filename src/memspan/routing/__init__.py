"""Choosing documents: a `LayerMemory` over a bank, the ranking over MSA layers, and the selectors."""
