"""NormalizingFlow: parameters, start, seeds, moments and how it shows itself."""

from html import escape

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pymc.variational.opvi import Approximation

import pymc_flows as pmf
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ArgumentError, FlowShapeError, FormulaError, ModelError
from pymc_flows.fitting.ladder import Ladder, Rung
from pymc_flows.importance import Quality

DIM = 6  # a_log__, x (3,), p_simplex__ (2,)
ALL_FIVE = "scale-radial*2-hh*3-planar*2-loc"
AFFINE = ["loc", "scale", "hh", "scale-loc", "loc-scale*2-hh*3-loc", "hh*4", "scale-hh*6-loc*2"]


@pytest.fixture(scope="module")
def model():
    with pm.Model(coords={"k": ["u", "v", "w"]}) as model:
        a = pm.HalfNormal("a")
        x = pm.Normal("x", 1, 2, dims="k")
        pm.Dirichlet("p", np.ones(3), dims="k")
        pm.Normal("y", x, a, observed=np.zeros(3), dims="k")
    return model


@pytest.fixture(scope="module")
def plain():
    """Untransformed variables only."""
    with pm.Model() as model:
        pm.Normal("x", shape=3)
        pm.Normal("z")
    return model


def raw(approx):
    return [value.get_value() for value in approx.params]


def set_raw(approx, rng, scale=1.0):
    for value in approx.params:
        value.set_value(scale * rng.standard_normal(value.type.shape))


# ----------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("planar", [("b", (1,)), ("u", (1, DIM)), ("w", (1, DIM))]),
        ("planar-planar", [("b", (2,)), ("u", (2, DIM)), ("w", (2, DIM))]),
        ("scale-hh*3-loc", [("rho", (1, DIM)), ("v", (3, DIM)), ("loc", (1, DIM))]),
        (
            "radial*2-loc-radial",
            [
                *[("a", (2,)), ("b", (2,)), ("z_ref", (2, DIM)), ("loc", (1, DIM))],
                *[("a", (1,)), ("b", (1,)), ("z_ref", (1, DIM))],
            ],
        ),
    ],
)
def test_there_is_one_parameter_per_block_and_name(model, formula, expected):
    approx = pmf.NormalizingFlow(formula, model=model)
    assert [(p.name, p.get_value().shape) for p in approx.params] == expected
    assert [p.type.shape for p in approx.params] == [shape for _, shape in expected]


def test_it_is_an_approximation_of_pymc(model):
    approx = pmf.NormalizingFlow(model=model)
    assert isinstance(approx, Approximation)
    assert str(approx.formula) == "scale-loc"
    assert (approx.ndim, approx.ddim, approx.has_logq) == (DIM, DIM, True)
    assert approx.model is model
    assert approx.hist.shape == (0,)
    assert approx.scale_cost_to_minibatch
    assert not approx.all_histograms
    assert list(approx.groups[0].ordering) == ["a_log__", "x", "p_simplex__"]
    assert approx != pmf.NormalizingFlow(model=model)
    assert len({approx, approx}) == 1


def test_the_model_comes_from_the_context(model):
    with model:
        assert pmf.NormalizingFlow("loc").model is model
    with pytest.raises(TypeError, match="context"):
        pmf.NormalizingFlow("loc")


def test_a_formula_object_is_a_formula(model):
    formula = pmf.Formula("planar*2")
    assert pmf.NormalizingFlow(formula, model=model).formula == formula
    for wrong in ("planr", 3, None):
        with pytest.raises(FormulaError):
            pmf.NormalizingFlow(wrong, model=model)
    with pytest.raises(TypeError, match="jiter"):
        pmf.NormalizingFlow("loc", model=model, jiter=1)


def html_of_layers(approx):
    """The table of the formula, under the approximation's own name."""
    html = approx.formula.table(DIM)._repr_html_()
    title = escape(f"Formula('{approx.formula}'), d = {DIM}")
    assert html.count(title) == 1
    return html.replace(title, escape(repr(approx)))


def test_it_shows_formula_and_dimension(model):
    approx = pmf.NormalizingFlow(" Planar * 2 ", model=model)
    assert repr(approx) == str(approx) == "NormalizingFlow('planar*2', dim=6)"
    layers, unfitted = approx._repr_html_().rsplit("<p>", 1)
    assert layers == html_of_layers(approx)
    assert unfitted.startswith("not fitted")
    assert str(approx.groups[0]) == repr(approx.groups[0]) == "NormalizingFlowGroup[6](planar*2)"


def test_a_fitted_approximation_shows_how_the_fit_went(model):
    approx = pmf.NormalizingFlow("scale-loc", model=model)
    approx.hist = np.array([9.0, np.nan, 3.0])
    quality = Quality(100, -3.0, 0.1, 0.2, 90.0, -2.9, 0.1)
    approx.ladder = Ladder((Rung(approx.formula, quality, 1.5, 300),), 0)
    *layers, fit, ladder = approx._repr_html_().split("<p>")
    assert "<p>".join(layers) == html_of_layers(approx)
    assert fit == "fitted in 3 steps; average loss of the last 3: 6 nats</p>"
    assert approx.ladder._repr_html_() in ladder
    approx.hist = np.full(2, np.nan)
    assert "the last 2: nan nats" in approx._repr_html_()


# ----------------------------------------------------------------------------------------- start

START = {"a": 2.0, "x": [4.0, 5.0, 6.0], "p": [0.2, 0.3, 0.5]}


def flat_start(model):
    point = model.initial_point()
    transform = model.rvs_to_transforms[model["p"]]
    simplex = transform.forward(np.array(START["p"])).eval(mode=NUMPY)
    assert not np.allclose(simplex, point["p_simplex__"])
    return np.concatenate([[np.log(2.0)], START["x"], simplex])


def test_a_final_loc_takes_the_start(model):
    approx = pmf.NormalizingFlow("planar-loc*2", model=model, start=START, jitter=0)
    *_, loc = approx.params
    assert_allclose(loc.get_value(), [np.zeros(DIM), flat_start(model)], rtol=1e-14)
    assert_array_equal(approx.q.frame.center, np.zeros(DIM))
    assert_allclose(approx.center_point(), flat_start(model), rtol=1e-14)


@pytest.mark.parametrize("formula", ["planar*2", "loc-scale", "radial", "hh*2"])
def test_without_a_final_loc_the_start_is_a_constant(model, formula):
    approx = pmf.NormalizingFlow(formula, model=model, start=START, jitter=0)
    assert_allclose(approx.q.frame.center, flat_start(model), rtol=1e-14)
    draws, _ = approx.sample_and_log_prob(3, random_seed=5)
    noise = np.random.default_rng(5).standard_normal((3, DIM))
    assert_allclose(draws - flat_start(model), noise, atol=1e-14)
    moved = approx.params[-1]
    moved.set_value(moved.get_value() + 1)
    assert_allclose(approx.q.frame.center, flat_start(model), rtol=1e-14)


def test_the_default_start_is_the_initial_point(model):
    approx = pmf.NormalizingFlow("loc", model=model, jitter=0)
    point = model.initial_point()
    names = ["a_log__", "x", "p_simplex__"]
    assert_allclose(approx.center_point(), np.concatenate([np.ravel(point[n]) for n in names]))


def test_a_transformed_name_is_a_value_in_the_unconstrained_space(model):
    one = pmf.NormalizingFlow("loc", model=model, start={"a": 2.0}, jitter=0)
    other = pmf.NormalizingFlow("loc", model=model, start={"a_log__": np.log(2.0)}, jitter=0)
    assert_allclose(one.center_point(), other.center_point(), rtol=1e-14)
    assert one.center_point()[0] == pytest.approx(np.log(2))


@pytest.mark.parametrize("start", [{"b": 1.0}, {"x": [1.0, 2.0]}, {"a": -1.0}, {"y": 0.0}])
def test_a_start_that_does_not_fit_is_refused(model, start):
    with pytest.raises(ModelError, match="start"):
        pmf.NormalizingFlow("loc", model=model, start=start)


def test_jitter_is_the_spread_of_the_raw_parameters(model):
    approx = pmf.NormalizingFlow("loc*400-scale", model=model, jitter=0.2, random_seed=1)
    loc, _ = raw(approx)
    assert loc.std() == pytest.approx(0.2, rel=0.05)
    assert abs(loc.mean()) < 5 * 0.2 / np.sqrt(loc.size)


@pytest.mark.parametrize("jitter", [-1, np.nan, np.inf, "1", None, True, 1j])
def test_a_jitter_that_is_no_standard_deviation_is_refused(model, jitter):
    with pytest.raises(ArgumentError, match="jitter"):
        pmf.NormalizingFlow("loc", model=model, jitter=jitter)


# ------------------------------------------------------------------------------ params= by layer


def test_params_are_set_by_layer_of_the_expanded_formula(model):
    ones = np.ones(DIM)
    given = {
        0: {"rho": 2 * ones},
        1: {"w": 3 * ones},
        2: {"b": 4, "u": list(5 * ones), "w": np.float32(6) * ones},
        3: {"loc": 7 * ones.astype(int)},
    }
    kwargs = {"model": model, "random_seed": 3, "start": START}
    approx = pmf.NormalizingFlow("scale-planar*2-loc", params=given, **kwargs)
    rho, b, u, w, loc = raw(approx)
    drawn = raw(pmf.NormalizingFlow("scale-planar*2-loc", **kwargs))
    assert_array_equal(rho, [2 * ones])
    assert_array_equal(b, [drawn[1][0], 4])
    assert_array_equal(u, [drawn[2][0], 5 * ones])
    assert_array_equal(w, [3 * ones, 6 * ones])
    assert_array_equal(loc, [7 * ones])
    assert all(p.dtype == "float64" for p in approx.params)


def test_params_are_copied(model):
    value = np.ones(DIM)
    approx = pmf.NormalizingFlow("loc", model=model, params={0: {"loc": value}})
    value[:] = 9
    assert_array_equal(raw(approx)[0], np.ones((1, DIM)))


@pytest.mark.parametrize(
    ("params", "error", "match"),
    [
        ({2: {}}, ArgumentError, r"layer 2\nexpected positions 0 to 1"),
        ({-1: {}}, ArgumentError, "layer -1"),
        ({"0": {}}, ArgumentError, "layer '0'"),
        ({True: {}}, ArgumentError, "layer True"),
        (
            {0: {"rho": np.ones(DIM)}},
            ArgumentError,
            r"'rho' of layer 0 \(planar\)\nexpected one of b, u, w",
        ),
        ({1: {"u": np.ones(3)}}, FlowShapeError, r"'u' of layer 1 .*\nexpected \(6,\), got \(3,\)"),
        ({0: {"u": np.ones((2, DIM))}}, FlowShapeError, r"got \(2, 6\)"),
        ({0: {"b": [1.0]}}, FlowShapeError, r"expected \(\), got \(1,\)"),
        ({0: {"b": np.nan}}, ArgumentError, "'b' of layer 0 .* is not finite"),
        ({0: {"b": "1"}}, ArgumentError, "'b' of layer 0 .* is not numeric"),
        ({0: {"b": 1j}}, ArgumentError, "not numeric"),
        ({0: 1.0}, ArgumentError, "must be a dict by names"),
        ([{}], ArgumentError, "must be a dict by layer positions"),
    ],
)
def test_params_that_do_not_fit_are_refused(model, params, error, match):
    with pytest.raises(error, match=match):
        pmf.NormalizingFlow("planar*2", model=model, params=params)


# ---------------------------------------------------------------------------------------- seeds


@pytest.mark.parametrize("kind", [int, np.int64, np.random.default_rng, np.random.RandomState])
def test_the_same_seed_gives_the_same_start_and_draws(model, kind):
    one, other = (pmf.NormalizingFlow(ALL_FIVE, model=model, random_seed=kind(7)) for _ in range(2))
    for x, y in zip(raw(one), raw(other), strict=True):
        assert_array_equal(x, y)
    for _ in range(2):
        assert_array_equal(one.sample_and_log_prob(3)[0], other.sample_and_log_prob(3)[0])
    first, *rest = (a.sample_and_log_prob(3, random_seed=kind(7))[0] for a in (one, other, one))
    assert_array_equal([first, first], rest)


def test_different_seeds_and_no_seed_differ(model):
    approximations = [pmf.NormalizingFlow(ALL_FIVE, model=model, random_seed=s) for s in (1, 2)]
    approximations += [pmf.NormalizingFlow(ALL_FIVE, model=model) for _ in range(2)]
    for index in range(len(approximations[0].params)):
        assert len({raw(approx)[index].tobytes() for approx in approximations}) == 4
    draws = [approx.sample_and_log_prob(2)[0] for approx in approximations]
    draws += [approximations[0].sample_and_log_prob(2)[0] for _ in range(2)]
    assert len({x.tobytes() for x in draws}) == 6


def test_seeded_draws_leave_the_own_stream_alone(model):
    one, other = (pmf.NormalizingFlow("loc", model=model, random_seed=1) for _ in range(2))
    one.sample_and_log_prob(5, random_seed=3)
    assert_array_equal(one.sample_and_log_prob(2)[0], other.sample_and_log_prob(2)[0])


def test_parameters_and_base_noise_are_independent_streams(model):
    approx = pmf.NormalizingFlow("loc", model=model, random_seed=1, jitter=1, start=None)
    noise = approx.sample_and_log_prob(1)[0] - raw(approx)[0]
    start = approx.params[0].get_value()[0] - approx.density.start()
    assert not np.isclose(noise[0], start).any()


# -------------------------------------------------------------------------------------- moments


def closed_form(approx):
    """Mean, and the matrix A of z = A z0 + c, layer by layer in NumPy."""
    matrix, mean = np.eye(approx.ddim), np.zeros(approx.ddim)
    for block, params in zip(approx.chain.blocks, approx.q.values(), strict=True):
        for k in range(block.count):
            if block.layer.word == "loc":
                mean = mean + params["loc"][k]
            elif block.layer.word == "scale":
                sigma = np.log1p(np.exp(params["rho"][k]))
                matrix, mean = sigma[:, None] * matrix, sigma * mean
            else:
                v = params["v"][k]
                reflection = np.eye(len(v)) - 2 * np.outer(v, v) / (v @ v)
                matrix, mean = reflection @ matrix, reflection @ mean
    return mean + approx.q.frame.center, matrix


@pytest.mark.parametrize("formula", AFFINE)
def test_moments_of_an_affine_chain_are_exact(model, rng, formula):
    approx = pmf.NormalizingFlow(formula, model=model, start=START)
    for _ in range(2):  # the second time with other parameters: the graphs read their values
        set_raw(approx, rng)
        mean, matrix = closed_form(approx)
        cov = matrix @ matrix.T
        assert_allclose(approx.mean.eval(mode=NUMPY), mean, rtol=1e-12)
        assert_allclose(approx.std.eval(mode=NUMPY), np.sqrt(np.diag(cov)), rtol=1e-12)
        assert_allclose(approx.cov.eval(mode=NUMPY), cov, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("formula", ["planar*2", "radial*2-scale-loc", ALL_FIVE])
def test_other_moments_are_estimates_from_fixed_noise(plain, rng, formula):
    approx = pmf.NormalizingFlow(formula, model=plain, start={"z": 3.0})
    set_raw(approx, rng)
    mean, std, cov = (m.eval(mode=NUMPY) for m in (approx.mean, approx.std, approx.cov))
    assert_array_equal(mean, approx.mean.eval(mode=NUMPY))
    assert_allclose(np.sqrt(np.diag(cov)), std, rtol=1e-12)
    draws, _ = approx.sample_and_log_prob(200_000, random_seed=1)
    spread = draws.std(axis=0)
    assert np.all(np.abs(mean - draws.mean(axis=0)) < 5 * spread / 64)  # 4096 draws of fixed noise
    kurtosis = ((draws - draws.mean(axis=0)) ** 4).mean(axis=0) / spread**4
    assert np.all(np.abs(std / spread - 1) < 5 * np.sqrt((kurtosis - 1) / 4) / 64)
    scaled = (cov - np.cov(draws.T)) / np.outer(spread, spread)
    assert np.all(np.abs(scaled) < 5 * np.sqrt(kurtosis.max()) / 64)


def test_state_is_that_of_pymcs_mean_field(model, rng):
    approx = pmf.NormalizingFlow("scale-loc", model=model)
    set_raw(approx, rng)
    rho, loc = raw(approx)
    mean_field = pm.MeanField(model=model)
    mean_field.params[0].set_value(loc[0])
    mean_field.params[1].set_value(rho[0])
    for include_transformed in (False, True):
        approx.groups[0].include_transformed = include_transformed
        mean_field.groups[0].include_transformed = include_transformed
        for name in ("mean", "std"):
            expected = getattr(mean_field.state, name)
            state = getattr(approx.state, name)
            assert set(state.data_vars) == set(expected.data_vars)
            assert ("a_log__" in state) is include_transformed
            assert state.x.dims == ("k",)
            for variable in expected.data_vars:
                assert_allclose(state[variable], expected[variable], rtol=1e-9)
    for name in ("mean_data", "std_data"):
        expected, data = getattr(mean_field, name), getattr(approx, name)
        assert list(data.data_vars) == ["a_log__", "x", "p_simplex__"]
        for variable in expected.data_vars:
            assert_allclose(data[variable], expected[variable], rtol=1e-9)


def test_draws_densities_and_moments_are_not_compiled(model, monkeypatch):
    """A first look at an approximation must not cost what compiling costs."""

    def refuse(*_, **__):
        raise AssertionError("compiled")

    monkeypatch.setattr("pytensor.link.numba.linker.NumbaLinker.make_all", refuse)
    with pytest.raises(AssertionError, match="compiled"):
        pytensor.function([], pt.exp(pytensor.shared(1.0)))
    approx = pmf.NormalizingFlow(ALL_FIVE.replace("*2", "*9"), model=model)
    points = approx.sample_and_log_prob(3)[0]
    assert np.isfinite(approx.log_prob(points)).all()
    assert np.isfinite(approx.center_point()).all()
    assert set(approx.state.mean.data_vars) == {"a", "x", "p"}
    assert approx.sample(3).posterior.x.shape == (1, 3, 3)
    assert len(approx.sample(3, return_inferencedata=False)) == 3
