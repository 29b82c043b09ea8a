"""A plugin for llmrec-plugin; see `llmrec_acme.plugin`."""
