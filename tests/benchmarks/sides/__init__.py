"""The sides of `tests/benchmarks/peers.py`: one sweep, done by the engine and by what else there is."""
