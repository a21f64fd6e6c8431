"""What each kind of Op passes on: sets of latents against Jacobians, curvature against autodiff."""

import logging
from functools import cache

import numpy as np
import pymc as pm
import pytensor
import pytensor.sparse
import pytensor.tensor as pt
import pytest
import scipy.sparse as sp

from hessians import automatic_hessian, start_near
from pymc_flows.backends.modes import PLAIN
from pymc_flows.model.curvature import Curvature
from pymc_flows.model.logp import density_of
from pymc_flows.model.structure import structure

BAND = sp.csr_matrix(np.eye(6) + np.diag(np.arange(1.0, 6), 1))
LOW = np.linalg.cholesky(0.5 * np.eye(6) + 0.5)
MASK = np.array([True, False, True, True, False, False])
BLOCKS = np.arange(1.0, 13).reshape(3, 2, 2)


def split(x):
    first, second = pt.split(x, [2, 4], n_splits=2)
    return pt.concatenate([second * 2, first[:1]])


# Functions of x (6,) whose sets of latents must be exactly the pattern of the Jacobian.
EXACT = {
    "elementwise": lambda x: pt.exp(x) * np.arange(1.0, 7),
    "broadcast": lambda x: x[:3, None] * x[None, 3:] + x[0],
    "transpose": lambda x: (x.reshape((2, 3)).T * np.ones((3, 2)))[1:],
    "slice": lambda x: x[1::2] - x[:-1:2],
    "index": lambda x: x[np.array([0, 0, 5, 2])],
    "mask": lambda x: x[MASK],
    "matrix of indices": lambda x: x.reshape((2, 3))[np.array([[0, 1], [1, 1]]), np.array([0, 2])],
    "join": lambda x: pt.concatenate([x[4:], np.ones(2), x[:1] * x[1:2]]),
    "split": split,
    "stack": lambda x: pt.stack([x[0], x[3] * x[4], 1.0]),
    "repeat": lambda x: pt.repeat(x[:2], 3),
    "tile": lambda x: pt.tile(x[:2], 2),
    "full": lambda x: pt.full((2, 2), x[3]),
    "set": lambda x: pt.set_subtensor(pt.zeros(8)[1:7], x),
    "set over": lambda x: pt.set_subtensor(x[np.array([1, 2])], x[5] ** 2),
    "increment": lambda x: pt.inc_subtensor(x[np.array([1, 1, 2])], x[3:]),
    "sum": lambda x: x.reshape((3, 2)).sum(axis=1),
    "sum of all": lambda x: pt.sqr(x[:4]).sum(),
    "maximum": lambda x: x.reshape((3, 2)).max(axis=1),
    "product": lambda x: pt.prod(x.reshape((3, 2)), axis=1, no_zeros_in_input=True),
    "cumsum": lambda x: pt.cumsum(x.reshape((2, 3)), axis=1),
    "cumsum of all": lambda x: pt.cumsum(x),
    "differences": lambda x: pt.diff(pt.cumsum(x)),
    "cumprod": lambda x: pt.cumprod(x[:3]),
    "matrix of data": lambda x: pt.dot(BAND.toarray(), x),
    "from the right": lambda x: x.reshape((3, 2)) @ np.array([[1.0, 2.0], [0.0, 3.0]]),
    "inner product": lambda x: pt.dot(x[:3], x[3:]),
    "bilinear": lambda x: x[:4].reshape((2, 2)) @ x[2:].reshape((2, 2)),
    "batched product": lambda x: pt.matmul(BLOCKS, x.reshape((3, 2, 1))),
    "sparse product": lambda x: pytensor.sparse.dot(BAND, x[:, None]),
    "sparse from the right": lambda x: pytensor.sparse.dot(x[None, :], BAND),
    "switch of data": lambda x: pt.switch(MASK, x, 2 * x[::-1]),
    "switch of latents": lambda x: pt.switch(x[:3], x[3:], 2 * x[3:]),
    "softmax": lambda x: pt.special.softmax(x.reshape((3, 2)), axis=1),
    "log softmax": lambda x: pt.special.log_softmax(x.reshape((3, 2)), axis=1),
    "logsumexp": lambda x: pt.logsumexp(x.reshape((3, 2)), axis=1),
    "logaddexp": lambda x: pt.logaddexp(x[:3], x[3:]),
    "diagonal": lambda x: pt.diag(pt.outer(x[:3], x[3:])),
    "to a diagonal": lambda x: pt.diag(x[:3]).sum(axis=0),
    "triangular": lambda x: pt.linalg.solve_triangular(LOW, x, lower=True),
    "batch of solutions": lambda x: pt.linalg.solve(
        BLOCKS + 5 * np.eye(2), x.reshape((3, 2, 1)), b_ndim=2
    ),
    "cast": lambda x: pt.cast(x, "float32").astype("float64") * 2,
    "sort": lambda x: pt.sort(x.reshape((2, 3)), axis=1)[:, :1] + pt.zeros((2, 3)) * x[0],
}
# Sets know that elements may matter, not that they cancel, or that they were compared.
INEXACT = {
    *("batch of solutions", "cast", "differences", "maximum", "sort", "switch of latents"),
    "triangular",
}
# Derivatives that are left to differences.
DIFFERENCED = {"product", "cumprod", "sort"}


@cache
def case(name):
    """A model with a potential f(x)² for each element of f."""
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=6)
        pm.Potential("f", EXACT[name](x) ** 2)
    return model


def jacobian(f, x):
    """By central differences."""
    value = pt.vector("x", shape=(6,))
    fn = pytensor.function([value], f(value), mode=PLAIN)
    rows = [(fn(x + e) - fn(x - e)) / 2e-4 for e in 1e-4 * np.eye(6)]
    return np.array(rows).reshape(6, -1).T


@pytest.mark.parametrize("name", [n for n in EXACT if n not in INEXACT])
def test_sets_are_the_pattern_of_the_jacobian(name):
    found = structure(case(name))
    expected = np.abs(jacobian(EXACT[name], start_near(density_of(case(name)), scale=1))) > 1e-7
    rows = found.incidence[6 : 6 + found.n_factors["f"]].toarray()
    np.testing.assert_array_equal(rows, expected)
    assert not found.unknown


def test_a_maximum_may_be_any_of_its_elements():
    rows = structure(case("maximum")).incidence[6:].toarray()
    np.testing.assert_array_equal(rows, np.repeat(np.eye(3), 2, axis=1))


def test_sorting_mixes_what_is_sorted():
    rows = structure(case("sort")).incidence[6:].toarray()
    np.testing.assert_array_equal(rows[:, 1:3], np.repeat([[1, 1], [0, 0]], 3, axis=0))
    np.testing.assert_array_equal(rows[:, 3:], np.repeat([[0, 0, 0], [1, 1, 1]], 3, axis=0))


@pytest.mark.parametrize("name", [n for n in EXACT if n != "cast"])
def test_curvature_is_that_of_automatic_differentiation(name, caplog):
    density = density_of(case(name))
    z = start_near(density, scale=1)
    curvature = Curvature(density)
    with caplog.at_level(logging.INFO):
        found = curvature(z).toarray()
    tolerance = 1e-6 if name in DIFFERENCED else 1e-10
    expected = -automatic_hessian(density, z)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert curvature.differenced == (("f",) if name in DIFFERENCED else ())
    assert ("by differences" in caplog.text) == (name in DIFFERENCED)


def test_what_is_not_understood_is_named_and_counts_as_dense():
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=4)
        pm.Potential("f", pt.linalg.expm(x.reshape((2, 2))).sum() ** 2 + x[0])
    found = structure(model)
    assert found.unknown == {"Expm": 1}
    np.testing.assert_array_equal(found.incidence[4:].toarray(), np.ones((1, 4)))


def test_what_is_added_once_to_an_element_counts_as_dense():
    """Sums over equal indices would add it several times."""
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=4)
        added = pt.inc_subtensor(x[np.array([1, 1])], x[2:], ignore_duplicates=True)
        pm.Potential("f", pt.exp(added))
    assert structure(model).unknown == {"AdvancedIncSubtensor": 1}


def test_linear_algebra_stays_within_an_element_of_a_batch():
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=(3, 2, 2))
        pm.Potential("f", pt.linalg.det(x))
    rows = structure(model).incidence[12:].toarray()
    np.testing.assert_array_equal(rows, np.kron(np.eye(3), np.ones(4)))
