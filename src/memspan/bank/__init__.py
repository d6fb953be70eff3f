"""The memory on disk: a catalog of documents and immutable segments of their latents."""
