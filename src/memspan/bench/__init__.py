"""Measuring sizes before there are documents: banks of made-up latents, asked."""
