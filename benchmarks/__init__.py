"""Benchmarks: run from the root of the repository, for example ``python -m benchmarks.loop``.

Each script writes a JSON file with everything it measured and a Markdown page with the tables to
``benchmarks/results``. Nothing here is timed in the test suite.
"""
