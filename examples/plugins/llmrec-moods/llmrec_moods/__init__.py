"""A plugin for llmrec-plugin; see `llmrec_moods.plugin`."""
