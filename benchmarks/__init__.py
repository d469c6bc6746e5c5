"""Benchmarks: what Harmony does for an object, and what other receivers do for the same one.

`python -m benchmarks store --help` is the way in. The modules: `workloads` (objects to send), `peers` (receivers),
`preencoded` (our sender) and `senders` (all of them), `floor` (the receiver that does as little as Python can),
`measure` (one run), `report` (tables and JSON).
"""
