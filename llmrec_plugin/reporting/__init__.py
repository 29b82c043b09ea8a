"""``llmrec report``: one page about a feature repo."""
