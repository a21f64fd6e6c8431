"""Log densities where their parts are rounded to 0 or 1: finite, with finite gradients."""

import mpmath
import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose
from pymc.distributions import transforms as tr

from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity

X = np.array([-600.0, -2.0, 0.5, 720.0])
Y = np.array([2, 0, 1, 0])
CUTS = np.array([-1.0, 0.5])


def normal(x, mu=0, sigma=1):
    return -(((x - mu) / sigma) ** 2) / 2 - mpmath.log(sigma) - mpmath.log(2 * mpmath.pi) / 2


def sigmoid(x):
    return 1 / (1 + mpmath.exp(-x))


def etas(b):
    return [b * mpmath.mpf(x) for x in X]


def softmax_by_p():
    with pm.Model() as model:
        eta = pm.Normal("b") * X
        p = pm.math.softmax(pt.stack([eta, 0 * eta, -eta], axis=1), axis=1)
        pm.Categorical("y", p=p, observed=Y)
    return model


def softmax_by_logit():
    with pm.Model() as model:
        eta = pm.Normal("b") * X
        pm.Categorical("y", logit_p=pt.stack([eta, 0 * eta, -eta], axis=1), observed=Y)
    return model


def softmax(b):
    total = normal(b)
    for eta, y in zip(etas(b), Y, strict=True):
        terms = [eta, 0 * eta, -eta]
        total += terms[y] - mpmath.log(sum(map(mpmath.exp, terms)))
    return total


def ordered_logistic():
    with pm.Model() as model:
        pm.OrderedLogistic("y", eta=pm.Normal("b") * X, cutpoints=CUTS, observed=Y)
    return model


def ordered_logit(b):
    total = normal(b)
    for eta, y in zip(etas(b), Y, strict=True):
        cumulated = [0, *(sigmoid(c - eta) for c in CUTS), 1]
        total += mpmath.log(cumulated[y + 1] - cumulated[y])
    return total


def ordered_probit():
    with pm.Model() as model:
        pm.OrderedProbit("y", eta=pm.Normal("b") * X / 50, cutpoints=CUTS, observed=Y)
    return model


def ordered_phi(b):
    total = normal(b)
    for eta, y in zip(etas(b), Y, strict=True):
        cumulated = [0, *(mpmath.ncdf(c - eta / 50) for c in CUTS), 1]
        total += mpmath.log(cumulated[y + 1] - cumulated[y])
    return total


def inflated():
    with pm.Model() as model:
        psi = pm.math.sigmoid(pm.Normal("b") * X)
        pm.ZeroInflatedPoisson("y", psi=psi, mu=2.0, observed=Y)
    return model


def zero_inflated(b):
    total = normal(b)
    for eta, y in zip(etas(b), Y, strict=True):
        poisson = mpmath.exp(-2) * mpmath.mpf(2) ** int(y) / mpmath.factorial(int(y))
        total += mpmath.log((0 if y else sigmoid(-eta)) + sigmoid(eta) * poisson)
    return total


def skewed():
    with pm.Model() as model:
        pm.SkewNormal("y", mu=0, sigma=1, alpha=100 * pm.Normal("b"), observed=X / 100)
    return model


def skew_normal(b):
    return normal(b) + sum(
        mpmath.log(2) + normal(x) + mpmath.log(mpmath.ncdf(100 * b * x))
        for x in map(mpmath.mpf, X / 100)
    )


CASES = {
    "softmax by p": (softmax_by_p, softmax),
    "softmax by logit_p": (softmax_by_logit, softmax),
    "ordered logits": (ordered_logistic, ordered_logit),
    "ordered probits": (ordered_probit, ordered_phi),
    "zero inflation": (inflated, zero_inflated),
    "skewness": (skewed, skew_normal),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_far_from_the_data(case):
    build, exact = CASES[case]
    points = np.array([-0.9, 0.003, 0.99])
    found, gradient = LogDensity(ModelDensity(build())).value_and_grad(points[:, None])
    with mpmath.workdps(400):
        value = [float(exact(mpmath.mpf(b))) for b in points]
        slope = [float(mpmath.diff(exact, mpmath.mpf(b), h=mpmath.mpf(10) ** -40)) for b in points]
    assert_allclose(found, value, rtol=1e-7)
    assert_allclose(gradient[:, 0], slope, rtol=1e-6)


def test_weights_of_a_mixture_that_are_zero():
    """Sticks of which nothing is left: the logarithm of a weight of 0 has no slope to speak of."""
    with pm.Model() as model:
        stick = pm.math.sigmoid(pm.Normal("b", shape=3))
        left = pt.concatenate([[1.0], pt.cumprod(1 - stick)])
        weights = left * pt.concatenate([stick, [1.0]])
        pm.NormalMixture("y", weights, np.arange(4.0), sigma=1.0, observed=[0.3, 2.0])
    point = np.array([[0.3, 800.0, -0.5]])  # the third and the fourth component have no weight
    value, gradient = LogDensity(ModelDensity(model)).value_and_grad(point)

    def exact(a):
        parts = [sigmoid(a), 1 - sigmoid(a)]
        likelihood = sum(
            mpmath.log(sum(w * mpmath.exp(normal(y, k)) for k, w in enumerate(parts)))
            for y in map(mpmath.mpf, ("0.3", "2"))
        )
        return normal(a) + normal(800) + normal(-0.5) + likelihood

    assert_allclose(value, [float(exact(mpmath.mpf("0.3")))], rtol=1e-12)
    assert_allclose(gradient[0], [float(mpmath.diff(exact, 0.3)), -800, 0.5], rtol=1e-9)


def test_a_cumulated_product_has_the_gradient_of_its_factors():
    with pm.Model() as model:
        x = pm.Normal("x", shape=4)
        pm.Potential("p", (pt.cumprod(x) * np.array([1.0, 2.0, 3.0, 4.0])).sum())
    for point in ([0.5, -1.0, 2.0, 0.3], [0.5, 0.0, 2.0, 0.3]):
        a, b, c, d = point
        slope = [1 + 2 * b + 3 * b * c + 4 * b * c * d, 2 * a + 3 * a * c + 4 * a * c * d]
        slope += [3 * a * b + 4 * a * b * d, 4 * a * b * c]
        _, gradient = LogDensity(ModelDensity(model)).value_and_grad(np.array([point]))
        assert_allclose(gradient[0] + point, slope, rtol=1e-12, atol=1e-15)


def test_ordered_categories_with_free_cutpoints_keep_their_order():
    with pm.Model() as model:
        cuts = pm.Normal("cuts", np.arange(2.0), 1, shape=2, transform=tr.ordered)
        pm.OrderedLogistic("y", eta=np.zeros(4), cutpoints=cuts, observed=Y)
    points = np.array([[-1.0, 0.3], [2.0, -1.5]])
    found = LogDensity(ModelDensity(model)).value(points)
    for (a, b), value in zip(points, found, strict=True):
        c = np.array([a, a + np.exp(b)])
        p = np.diff(np.concatenate([[0.0], 1 / (1 + np.exp(-c)), [1.0]]))
        prior = -((c - np.arange(2)) ** 2).sum() / 2 - np.log(2 * np.pi) + b
        assert_allclose(value, prior + np.log(p[Y]).sum(), rtol=1e-10)
