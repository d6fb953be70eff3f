"""Training: questions -> batches -> losses -> checkpoint. Knows nothing of banks, routing, generation, evaluation."""
