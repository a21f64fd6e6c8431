"""Fixed permutations and rotations: layers without parameters."""

import cloudpickle
import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

import pymc_flows as pmf
from flow_cases import compiled, evaluate, one_block
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ArgumentError, FormulaError
from pymc_flows.flows import Perm, build_chain

KINDS = ("random", "reverse", "rotate")


def matrix(layer, dim, count=1):
    z, _ = one_block(layer, count, dim).forward_and_log_det(np.eye(dim), ({},))
    return evaluate(z)[0].T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_the_matrix_is_orthogonal_and_the_inverse_its_transpose(kind, dim):
    layer = Perm(kind=kind, seed=3)
    q = matrix(layer, dim)
    np.testing.assert_allclose(q @ q.T, np.eye(dim), rtol=0, atol=1e-14)
    z, log_det = one_block(layer, 1, dim).inverse_and_log_det(np.eye(dim), ({},))
    z, log_det = evaluate(z, log_det)
    np.testing.assert_allclose(z.T, q.T, rtol=0, atol=1e-14)
    assert log_det.tolist() == [0] * dim


def test_reverse():
    assert matrix(Perm(), 3).tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("dim", [2, 3, 10])
def test_random_is_one_cycle(dim):
    for seed in range(20):
        q = matrix(Perm(kind="random", seed=seed), dim)
        powers = [np.linalg.matrix_power(q, k).trace() for k in range(1, dim + 1)]
        assert powers == [0] * (dim - 1) + [dim]


def test_rotations_are_uniform():
    first = np.array([matrix(Perm(kind="rotate", seed=seed), 3)[0] for seed in range(300)])
    assert np.abs(first.mean(axis=0)).max() < 4 / np.sqrt(3 * 300)
    np.testing.assert_allclose(first.T @ first / 300, np.eye(3) / 3, rtol=0, atol=0.08)


@pytest.mark.parametrize("kind", ["random", "rotate"])
def test_the_seed_decides(kind):
    one, again, other = (matrix(Perm(kind=kind, seed=seed), 9) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.parametrize("option", ["kind=upwards", "seed=-1"])
def test_wrong_options(option):
    with pytest.raises(FormulaError) as caught:
        pmf.Formula(f"planar-perm({option})-loc")
    assert type(caught.value.__cause__) is ArgumentError


def test_a_formula_shows_no_parameters():
    formula = pmf.Formula("planar*2-perm(kind=rotate, seed=4)-loc")
    assert str(formula) == "planar*2-perm(kind=rotate,seed=4)-loc"
    assert formula.table(3).rows[1][2] == "0"
    assert "−z" in formula.table(1).rows[1][3]


@pytest.mark.parametrize("loop", ["unroll", "scan", "kernel"])
@pytest.mark.parametrize("count", [1, 3])
def test_every_loop(loop, count, rng):
    chain = build_chain(f"perm(kind=rotate)*{count}", 3)
    z = pt.matrix(shape=(None, 3))
    function = compiled([z], chain.forward_and_log_det(z, ({},), loop=loop))
    points = rng.standard_normal((4, 3))
    expected = points @ matrix(Perm(kind="rotate"), 3, count).T
    np.testing.assert_allclose(function(points)[0], expected, rtol=0, atol=1e-13)


@pytest.fixture(scope="module")
def model():
    with pm.Model() as model:
        pm.Normal("x", [1, 2, 3], [0.1, 0.2, 0.3])
    return model


@pytest.mark.parametrize("formula", ["perm", "perm(kind=random)*2-loft", "planar-perm*2-loc"])
def test_an_approximation(formula, model):
    approx = pmf.NormalizingFlow(formula, model=model, random_seed=0)
    points, log_q = approx.sample_and_log_prob(5, random_seed=1)
    np.testing.assert_allclose(approx.log_prob(points), log_q, rtol=0, atol=1e-9)
    again = cloudpickle.loads(cloudpickle.dumps(approx))
    np.testing.assert_allclose(again.log_prob(points), log_q, rtol=0, atol=1e-9)
    assert [p.name for p in approx.params] == [["b", "u", "w", "loc"], []]["planar" not in formula]


def test_a_fit_on_jax(model):
    pytest.importorskip("jax")
    formula = "scale-perm(kind=rotate)-scale-perm-loc"
    inference = pmf.NFVI(formula, model=model, random_seed=0)
    approx = inference.fit(1500, backend="jax", progressbar=False)
    np.testing.assert_allclose(approx.mean.eval(mode=NUMPY), [1, 2, 3], rtol=0, atol=0.1)
