import numpy as np
import pytest
from scipy import stats

from pymc_flows.field.hyper.emulator import FEWEST, fit_emulator


def smooth(x):
    """A log density that is neither quadratic nor cubic."""
    u, v = x.T
    return -0.5 * u**2 - 0.5 * (v - 0.3 * u) ** 2 - 0.4 * np.exp(0.7 * v) + 0.2 * np.sin(u)


@pytest.fixture
def known(rng):
    uniform = stats.qmc.Sobol(2, rng=rng).random(128)
    return 1.3 * stats.norm.ppf(np.clip(uniform, 1e-6, 1 - 1e-6))


def weights_of(log_p):
    weights = np.exp(log_p - log_p.max())
    return weights / weights.sum()


def test_predictions_are_right_within_the_values_and_doubtful_far_away(known, rng):
    log_p = smooth(known)
    found = fit_emulator(known, log_p, weights_of(log_p))
    new = rng.standard_normal((500, 2))
    mean, sd = found(new)
    off = mean - smooth(new)
    inside = sd < 0.01
    assert inside.mean() > 0.9
    assert np.abs(off[inside]).max() < 0.05
    assert found.error < 0.01
    assert (found(np.array([[12.0, 12.0], [-15.0, 3.0]]))[1] > 0.05).all()


def test_errors_at_left_out_values_are_those_of_fits_without_them(known):
    known = known[smooth(known) > -10]
    log_p = smooth(known) + 0.01 * np.cos(40 * known[:, 0])
    weights = weights_of(log_p)
    found = fit_emulator(known, log_p, weights)
    mean = np.empty(len(known))
    for i in range(len(known)):
        # The emulator of the others, with the same scaling, length and noise.
        rest = np.delete(np.arange(len(known)), i)
        z = np.linalg.solve(found.lower, (known - found.center).T).T
        design = np.column_stack(
            [np.ones(len(z)), z, z[:, 0] ** 2, z[:, 0] * z[:, 1], z[:, 1] ** 2]
        )
        squares = np.square(z[:, None] - z).sum(axis=2)
        k = np.exp(-0.5 * squares / found.length**2) + found.noise * np.eye(len(z))
        inverse = np.linalg.inv(k[np.ix_(rest, rest)])
        f = design[rest]
        beta = np.linalg.solve(f.T @ inverse @ f, f.T @ inverse @ log_p[rest])
        mean[i] = design[i] @ beta + k[i, rest] @ inverse @ (log_p[rest] - f @ beta)
    expected = np.sqrt(weights @ (mean - log_p) ** 2)
    assert found.error == pytest.approx(expected, rel=1e-3)


def test_noise_is_not_predicted(known, rng):
    log_p = smooth(known) + 0.3 * rng.standard_normal(len(known))
    found = fit_emulator(known, log_p, weights_of(log_p))
    assert found.error > 0.2


def test_values_of_no_weight_do_not_count(known):
    log_p = smooth(known)
    expected = fit_emulator(known, log_p, weights_of(log_p))
    far = np.array([[30.0, 0.0], [0.0, -40.0]])
    with_far = np.concatenate([log_p, [-500.0, -np.inf]])
    found = fit_emulator(np.concatenate([known, far]), with_far, weights_of(with_far))
    assert found.error == pytest.approx(expected.error)


def test_nothing_is_trusted_where_the_nearest_value_has_no_density(rng):
    """Half of a plane is impossible; a quadratic is exact in the other half."""
    known = 1.5 * rng.standard_normal((128, 2))
    log_p = np.where(known[:, 0] > 1.2, -np.inf, -0.5 * np.square(known).sum(axis=1))
    found = fit_emulator(known, log_p, weights_of(log_p))
    _, sd = found(rng.uniform([1.6, -2], [3, 2], (100, 2)))
    assert np.isinf(sd).mean() > 0.9
    _, sd = found(rng.uniform([-1.5, -1.5], [0.5, 1.5], (100, 2)))
    assert (sd < 0.05).mean() > 0.9
    assert found(np.array([[-40.0, 0.0]]))[1] > 0.05


def test_few_values_make_no_emulator(known):
    few = known[: 6 * FEWEST - 1]
    log_p = smooth(few)
    assert fit_emulator(few, log_p, weights_of(log_p)) is None
    assert fit_emulator(np.zeros((50, 0)), np.zeros(50), np.ones(50)) is None
    assert fit_emulator(known, np.full(len(known), -np.inf), np.ones(len(known))) is None
