"""The built-in generation engine: exported generators in ONNX Runtime.

    requests -> prompts (token ids) -> slots | static batches -> choice of tokens -> completions
                                       \\________ ONNX Runtime ________/

`session` puts the parts together; `generators` chooses between this engine and those that plugins register.
"""
