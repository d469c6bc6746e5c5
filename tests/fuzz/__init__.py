"""What comes from outside, under a coverage-guided fuzzer: `python -m tests.fuzz --help`, and CONTRIBUTING.md."""
