"""`feast serve` runs this in each of its workers: models are loaded before the first request."""

from llmrec_plugin.feast import load_artifacts

__all__ = ["load_artifacts"]
