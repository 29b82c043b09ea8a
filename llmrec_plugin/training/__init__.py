"""Training of small models on a frozen encoder: ``llmrec train``.

    rows -> groups of near duplicates -> training, validation, test -> encoder (frozen) -> head or decoder -> file

What is trained is small enough to ship: a head that scores labels (`tags`), or a decoder that writes a short text
(`synopsis`). Importing this package loads neither torch nor transformers.
"""
