"""Moments of weighted values, and their errors."""

import numpy as np

from pymc_flows.field.hyper.proposal import spread_errors


def test_errors_of_spreads_are_those_of_many_sets_of_values(rng):
    """The target is N(0, diag(1, 4)), values are wider, and one coordinate is a constant."""
    found, errors = [], []
    for _ in range(1_000):
        unit = 1.5 * rng.standard_normal((500, 2))
        log_weights = -0.5 * np.square(unit).sum(axis=1) * (1 - 1 / 1.5**2)
        weights = np.exp(log_weights) / np.exp(log_weights).sum()
        values = np.column_stack([unit * [1, 2], np.full(500, 3.0)])
        errors.append(spread_errors(values, weights))
        found.append(np.sqrt(weights @ np.square(values - weights @ values)))
    expected = np.std(found, axis=0)[:2] / np.mean(found, axis=0)[:2]
    np.testing.assert_allclose(np.mean(errors, axis=0), [*expected, 0], rtol=0.1, atol=1e-12)
