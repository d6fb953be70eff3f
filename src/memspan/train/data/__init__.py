"""Training data: questions with their evidence, from whatever a person has, checked, cleaned, mixed and streamed."""
