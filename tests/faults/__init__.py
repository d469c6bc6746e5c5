"""What goes wrong around a gateway, done to a real one while other peers go on: `python -m tests.faults`.

`program` runs the gateway, `trial` is one fault from start to verdict, `witness` the well-behaved peers, `wire` and
`peers` the others. The faults are in `slow` (who holds on), `broken` (who breaks off or sends nonsense), `resources`
(disk, descriptors, clock), `crashes` (kill, power, index, stop) and `upstreams` (what is behind the gateway).
`test_faults` runs each of them in a short form; docs/FAULTS.md has a table of the long one.
"""
