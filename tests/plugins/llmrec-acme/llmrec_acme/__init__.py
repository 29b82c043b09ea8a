"""Acme's features and models for llmrec-plugin."""
