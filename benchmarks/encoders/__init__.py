"""Encoders side by side: ours and every peer that loads a local folder, on the same texts, in one run.

    make bench

`run` sends each engine the same work in turn, `results` turns the observations into figures, `report` and `chart`
show them. An engine is a process of its own (`worker`) in an environment of its own (`environments`), behind a small
adapter (`adapters`). docs/benchmarks/encoders.md says how to read the result.
"""
