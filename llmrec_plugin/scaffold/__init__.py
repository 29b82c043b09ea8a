"""``llmrec new-plugin``: the package that a plugin's author begins with."""
