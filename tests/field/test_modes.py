import numpy as np
import pytest
from scipy import optimize, sparse

from posteriors import Bernoulli, Funnel, LinearMixed, variances
from pymc_flows.field import Posterior
from pymc_flows.field.conditional.mapping import TOLERANCE
from pymc_flows.field.conditional.newton import MAX_DAMPED, FieldModes
from pymc_flows.field.factors import factoring


def modes_of(posterior):
    return FieldModes(posterior, factoring(posterior.pattern, posterior.groups))


@pytest.fixture(scope="module")
def bernoulli():
    rng = np.random.default_rng(0)
    return Bernoulli(rng.integers(0, 6, 12), np.full(12, 5))


def test_the_mode_of_a_gaussian_field_takes_one_step(rng):
    plate = np.kron(np.eye(4), np.ones((3, 1)))
    target = LinearMixed(rng.standard_normal(12), [plate], np.arange(4))
    posterior = target.posterior()
    hyper = rng.standard_normal((5, 2))
    found = modes_of(posterior).find(hyper, rng.standard_normal((5, 4)), steps=5, tolerance=1e-6)
    for g, gaussian in zip(hyper, found, strict=True):
        assert gaussian.log_marginal == pytest.approx(target.log_marginal(g[None])[0])
    counts = posterior.evaluations
    assert (counts.gradients, counts.curvatures, counts.factors) == (10, 5, 5)


def test_the_mode_agrees_with_a_general_optimiser(bernoulli):
    posterior = bernoulli.posterior()
    g = np.array([0.5, 0.7])
    [gaussian] = modes_of(posterior).find(g[None], np.zeros((1, 12)), steps=30, tolerance=1e-10)

    def negative(x):
        value, gradient = bernoulli.value_and_grad(np.concatenate([g, x])[None])
        return -value[0], -gradient[0, 2:]

    expected = optimize.minimize(negative, np.zeros(12), jac=True, options={"gtol": 1e-10})
    np.testing.assert_allclose(gaussian.mean, expected.x, atol=1e-5)
    curvature = bernoulli.curvature(np.concatenate([g, expected.x])).diagonal()
    np.testing.assert_allclose(variances(gaussian.factor, 12), 1 / curvature, rtol=1e-3)


def test_determinants_of_large_fields_do_not_depend_on_the_start(rng):
    """A small step of all elements changes the log determinant by the sum of what it changes."""
    posterior = Bernoulli(rng.integers(0, 3, 3000), np.full(3000, 2)).posterior()
    modes, g = modes_of(posterior), np.array([[0.5, 0.7]])
    [exact] = modes.find(g, np.zeros((1, 3000)), steps=30, tolerance=1e-20)
    for off in 10.0 ** -np.arange(1, 7):
        [found] = modes.find(g, exact.mean[None] + off, steps=30, tolerance=TOLERANCE)
        assert found.log_marginal == pytest.approx(exact.log_marginal, abs=0.02)


def test_modes_do_not_depend_on_what_else_is_sought(bernoulli, rng):
    hyper, field = rng.standard_normal((4, 2)), rng.standard_normal((4, 12))
    modes = modes_of(bernoulli.posterior())
    together = modes.find(hyper, field, steps=20, tolerance=1e-3)
    for i, gaussian in enumerate(together):
        [alone] = modes.find(hyper[i : i + 1], field[i : i + 1], steps=20, tolerance=1e-3)
        np.testing.assert_allclose(gaussian.mean, alone.mean, rtol=1e-12, atol=1e-12)


class Bilinear:
    """log p = −½ (ab − 2)² / 0.1 − ½ (a² + b²): indefinite far from its modes."""

    def value_and_grad(self, points):
        a, b = points.T
        rest = (a * b - 2) / 0.1
        value = -0.05 * rest**2 - 0.5 * (a**2 + b**2)
        return value, np.stack([-rest * b - a, -rest * a - b], axis=1)

    def curvature(self, point):
        a, b = point
        off = (2 * a * b - 2) / 0.1
        return sparse.csc_matrix([[b**2 / 0.1 + 1, off], [off, a**2 / 0.1 + 1]])

    def posterior(self):
        class Field:
            hyperparameters = np.zeros(0, int)
            field = np.arange(2)
            groups = np.zeros(2, int)

        return Posterior(Field, self.value_and_grad, self.curvature, None, np.array([0.1, 0.2]))


def test_a_field_that_is_indefinite_on_the_way_finds_its_mode():
    posterior = Bilinear().posterior()
    [gaussian] = modes_of(posterior).find(
        np.zeros((1, 0)), np.array([[0.01, 3.0]]), steps=60, tolerance=1e-10
    )
    # The modes are at a = b with (a² − 2)/0.1 + 1 = 0.
    np.testing.assert_allclose(gaussian.mean, np.sqrt(1.9), rtol=1e-4)


def test_steps_are_bounded_and_a_field_without_a_mode_is_none(rng):
    class Rising(Funnel):
        def curvature(self, point):
            return -super().curvature(point)

    posterior = Rising(3).posterior()
    modes = FieldModes(posterior, factoring(sparse.identity(3, format="csc")))
    [found] = modes.find(np.zeros((1, 1)), rng.standard_normal((1, 3)), steps=7, tolerance=1e-12)
    assert found is None
    assert posterior.evaluations.gradients <= 8


def test_a_field_that_needs_damping_at_every_step_is_given_up():
    class Sloping(Bilinear):
        """It rises for ever, and is nowhere concave."""

        def value_and_grad(self, points):
            return points.sum(axis=1), np.ones_like(points)

        def curvature(self, point):
            return sparse.csc_matrix([[1.0, 2.0], [2.0, 1.0]])

    posterior = Sloping().posterior()
    [found] = modes_of(posterior).find(np.zeros((1, 0)), np.ones((1, 2)), steps=500, tolerance=1e-3)
    assert found is None
    assert posterior.evaluations.gradients == MAX_DAMPED + 1


def test_a_curvature_that_no_damping_makes_definite_has_no_mode():
    class Tied(Bilinear):
        def curvature(self, point):
            return sparse.csc_matrix([[1.0, 1e12], [1e12, 1.0]])

    modes = modes_of(Tied().posterior())
    [found] = modes.find(np.zeros((1, 0)), np.ones((1, 2)), steps=9, tolerance=1e-3)
    assert found is None


def test_points_without_a_density_have_no_mode(bernoulli):
    hyper = np.array([[0.0, 0.0], [np.nan, 0.0]])
    found = modes_of(bernoulli.posterior()).find(hyper, np.zeros((2, 12)), steps=9, tolerance=1e-3)
    assert found[0] is not None
    assert found[1] is None
