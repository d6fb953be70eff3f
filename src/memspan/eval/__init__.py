"""Measuring: question sets, needle tests, arms on the same questions, metrics with intervals."""
