"""Feast objects from declarations. The only part of the package that imports feast.

In a feature repo::

    from llmrec_plugin.feast import publish

    llm = publish(globals())
"""

from llmrec_plugin.feast.patches import apply_patches
from llmrec_plugin.feast.publish import publish

apply_patches()

__all__ = ["publish"]
