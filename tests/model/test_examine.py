"""What is checked before a training function is compiled, and how it is said."""

import importlib.util

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import predefined_linkers
from pytensor.link.c.op import COp
from pytensor.link.numba.linker import NumbaLinker
from pytensor.raise_op import CheckAndRaise

from models import ZOO
from pymc_flows.errors import BackendError, ModelError
from pymc_flows.model.examine import check_backend, check_start, plan_draws, why_not_finite
from pymc_flows.model.logp import ModelDensity


def message(model, start=None, replacements=None):
    density = ModelDensity(model)
    with pytest.raises(ModelError) as caught:
        check_start(density, density.start() if start is None else start, replacements)
    return str(caught.value)


@pytest.mark.parametrize("name", ["eight_schools", "garch", "gp_marginal", "with_data"])
def test_good_starts_pass(name):
    density = ModelDensity(ZOO[name]())
    check_start(density, density.start())


def test_the_term_that_is_not_finite_is_named():
    with pm.Model() as model:
        mu = pm.Normal("mu", 1, 1)
        pm.Normal("fine", mu, 1, observed=0.0)
        pm.Exponential("waiting", 1 / mu, observed=[1.0, -2.0])
    assert message(model) == (
        "the log density of the model is not finite at the start\n"
        "  waiting: log density -inf\n"
        "at mu=1.\n"
        "Look at the data of waiting first: a value that is infinite, or outside of the support, "
        "has no density anywhere.\n"
        "Give the model another initial point (initval=) or pass start=; model.debug() shows the "
        "parameters of each term."
    )


def test_the_free_variable_that_is_outside_of_its_support_is_named():
    with pm.Model() as model:
        pm.HalfNormal("sigma", 1, default_transform=None, initval=-1.0)
        pm.Normal("x", 0, 1, shape=3)
    text = message(model)
    assert "\n  sigma: log density -inf\nat sigma=-1., x=[0. 0. 0.]\nGive the model" in text


def test_each_bad_term_is_named():
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1)
        pm.Potential("minus infinity", pt.log(pt.abs(x)))
        pm.Potential("not a number", pt.sqrt(x - 1))
        pm.Potential("good", 2 * x)
    text = message(model)
    assert "\n  minus infinity: log density -inf\n  not a number: log density nan\nat " in text
    assert "good" not in text


def test_a_bad_parameter_is_named_with_its_term():
    """PyMC's check of sigma, which raises in a plain PyTensor function."""
    with pm.Model() as model:
        x = pm.Normal("x", -1, 1)
        pm.Normal("y", 0, x, observed=1.0)
    assert "\n  y: log density -inf\nat x=-1.\n" in message(model)


def test_a_density_that_is_finite_once_it_is_stabilised_passes():
    with pm.Model() as model:
        x = pm.Normal("x", 800, 1)
        pm.Potential("p", -pt.log(1 + pt.exp(x)))
    density = ModelDensity(model)
    check_start(density, density.start())


def test_replacements_are_checked():
    with pm.Model() as model:
        scale = pm.Data("scale", 1.0)
        pm.Normal("x", 0, scale)
    density = ModelDensity(model)
    check_start(density, density.start())
    with pytest.raises(ModelError, match="not finite"):
        check_start(density, density.start(), {scale: pt.constant(np.float64(-1))})
    check_start(density, density.start(), {scale: pt.constant(np.float64(2))})


def test_new_data_are_seen():
    density = ModelDensity(ZOO["with_data"]())
    start = density.start()
    check_start(density, start)
    density.model.set_data("y", np.full(7, np.inf))
    with pytest.raises(ModelError, match="obs: log density -inf"):
        check_start(density, start)


def test_an_op_that_raises_at_the_start_is_named():
    with pm.Model() as model:
        length = pm.Data("length", np.zeros(4))
        x = pm.Normal("x", 0, 1, shape=3)
        pm.Normal("y", x, 1, observed=length)
    text = message(model)
    assert text.startswith("the log density of the model cannot be evaluated at the start: ")
    assert " fails (ValueError: " in text


def test_assertions_about_data_are_heard():
    with pm.Model() as model:
        data = pm.Data("data", 1.0)
        checked = CheckAndRaise(RuntimeError, "data must be negative")(data, data < 0)
        x = pm.Normal("x", 0, 1)
        pm.Potential("p", x * checked)
    assert "(RuntimeError: data must be negative)" in message(model)


def test_draws_that_are_not_finite_are_counted_by_term():
    density = ModelDensity(ZOO["without_transform"]())
    points = np.array([[0.5], [-0.5], [-1.0], [2.0]])
    assert why_not_finite(density, points) == (
        "  sigma: not finite at 2 of 4 draws\n  y: not finite at 2 of 4 draws"
    )
    assert why_not_finite(density, points[[0, 3]]) == (
        "  all terms are finite at the current draws; a gradient is not"
    )
    points[0] = np.nan
    assert why_not_finite(density, points).startswith(
        "  the flow itself: draws are not finite\n  sigma: not finite at 3 of 4 draws"
    )


def test_nothing_is_compiled(monkeypatch):
    """No C compiler, and no backend: that would cost a second and more for each new Op."""
    monkeypatch.setattr(COp, "make_c_thunk", lambda *_, **__: pytest.fail("compiled C code"))
    monkeypatch.setattr(NumbaLinker, "jit_compile", lambda *_: pytest.fail("used numba"))
    for name in ("vm", "cvm"):  # as they are where PyTensor has a compiler when it is imported
        monkeypatch.setattr(predefined_linkers[name], "c_thunks", True)
    for name in ("normal_mixture", "lkj_cholesky", "mv_normal", "garch"):
        with pytensor.config.change_flags(cxx="g++"):
            density = ModelDensity(ZOO[name]())
            start = density.start()
            check_start(density, start)
            plan_draws(density, 8, start, "numba")


# ----------------------------------------------------------------------------------------- backends


@pytest.mark.parametrize("backend", [None, "numba", "jax"])
def test_known_backends_pass(backend):
    check_backend(backend)


@pytest.mark.parametrize("backend", ["c", "JAX", "pytorch", "", 1, ["jax"]])
def test_unknown_backends_are_refused(backend):
    with pytest.raises(BackendError) as caught:
        check_backend(backend)
    assert str(caught.value) == (
        f"unknown backend {backend!r}\nexpected one of 'numba', 'jax' or None"
    )


def test_jax_must_be_installed(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *args: None if name == "jax" else found(name, *args),
    )
    check_backend(None)
    check_backend("numba")
    with pytest.raises(BackendError) as caught:
        check_backend("jax")
    assert str(caught.value) == (
        "backend 'jax' is not installed\ninstall jax, or leave backend out to use numba"
    )
