"""Benchmarks: what Harmony does for an object or a query, and what other programs do for the same one.

`python -m benchmarks --help` is the way in. The modules: `workloads` (objects to send), `peers` (receivers),
`preencoded` (our sender) and `senders` (all of them), `floor` (the receiver that does as little as Python can),
`measure` (one run), `report` and `tables` (tables and JSON); `archives`; `draining` (our client) and `retrieve`;
`find_data`, `querying` (our client) and `find`; `proxy`; `jmix_upstream` (a draining server) and `jmix`.
"""
