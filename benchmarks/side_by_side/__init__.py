"""The parts of bench_engine.py: pairs, model shapes, peers' environments, workers, rounds, figures."""
