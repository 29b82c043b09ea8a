"""One module per library: how a competent user of it encodes texts.

A module has ``IMPORTS`` (what its users import, timed), ``PACKAGES`` (whose versions are recorded) and
``load(options)``, which gives a `benchmarks.encoders.worker.Engine`. The options are those of the engine's row in
`benchmarks.encoders.engines` and, for every engine, those of `benchmarks.encoders.models.Model`.
"""
