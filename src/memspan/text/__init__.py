"""Text in, tokens out: reading corpora, splitting long documents, templates, packing of batches."""
