"""What `benchmarks.hierarchies` simulates, judges and shows; too small to judge any fit."""

import resource
import signal
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.replace import vectorize_graph
from scipy.special import logsumexp
from xarray import Dataset, DataTree

from pymc_flows.backends.modes import NUMPY

# ------------------------------------------------------------------------------- the posteriors


@pytest.mark.parametrize("family", ["normal", "negative_binomial"])
def test_parametrisations_are_one_posterior(bench, rng, family):
    """Densities differ by the Jacobian of effects by what stands instead of them."""
    models = bench._hierarchy_models
    data = models.cell_data(models.Cell(family, "centred", 3, 2, "slopes"), seed=1)
    fixed, scale, raw = rng.normal(size=2), np.array([0.3, 1.7]), rng.normal(size=(3, 2))
    effects = fixed + scale * raw
    extra = {"normal": "noise", "negative_binomial": "shape"}[family]
    given = {"fixed": fixed, "scale_log__": np.log(scale), f"{extra}_log__": np.log(1.3)}
    found = []
    for centred, name, values, jacobian in (
        (True, "effects", effects, np.zeros(2)),
        (False, "raw", raw, np.log(scale)),
    ):
        log_density = models.hierarchy(data, centred=centred).compile_logp(mode=NUMPY)
        found.append(log_density({**given, name: values}) - 3 * jacobian.sum())
    np.testing.assert_allclose(found, found[0], rtol=1e-10)


@pytest.mark.parametrize("family", ["normal", "poisson", "bernoulli", "negative_binomial"])
def test_the_marginal_of_a_reference_is_that_of_the_model(bench, family):
    """Of one group with two effects, integrated by the trapezoid rule."""
    models = bench._hierarchy_models
    data = models.cell_data(models.Cell(family, "centred", 1, 6, "slopes"), seed=1)
    fixed, scale, extra = np.array([0.3, -0.4]), np.array([0.9, 0.5]), 1.2
    given = {"fixed": fixed, "scale_log__": np.log(scale)}
    u = np.concatenate([fixed, scale])
    if family in ("normal", "negative_binomial"):
        given["noise_log__" if family == "normal" else "shape_log__"] = np.log(extra)
        u = np.append(u, np.log(extra))
    model = models.hierarchy(data, centred=False)
    axis = np.linspace(-6, 6, 33)
    raw = np.array([(a, b) for a in axis for b in axis])
    variables = {v.name: v for v in model.value_vars}
    values = {variables[name]: pt.constant(x) for name, x in given.items()}
    values[variables["raw"]] = pt.constant(raw[:, None])  # the one that has a batch of values
    [log_density] = vectorize_graph([model.logp()], values)
    log_p = pytensor.function([], log_density, mode=NUMPY)()
    assert log_p.shape == (len(raw),)
    # The scale of a reference has no logarithm.
    expected = logsumexp(log_p) + 2 * np.log(axis[1] - axis[0]) - np.log(scale).sum()
    weights = np.exp(log_p - logsumexp(log_p))
    marginal, conditional = bench._hierarchy_exact._functions(data)
    value, gradient = marginal(u)
    assert value == pytest.approx(expected, abs=1e-4)
    step = 1e-5 * np.eye(len(u))
    differences = [(marginal(u + h)[0] - marginal(u - h)[0]) / 2e-5 for h in step]
    np.testing.assert_allclose(gradient, differences, atol=2e-4)
    _, means, squares = conditional(u[None])
    np.testing.assert_allclose(means[0, 0], weights @ raw, atol=1e-3)
    np.testing.assert_allclose(squares[0, 0], weights @ raw**2, rtol=1e-3)


def test_a_reference_agrees_with_a_grid(bench):
    """Normal data with known noise would be conjugate; here three numbers are on a grid."""
    models = bench._hierarchy_models
    data = models.cell_data(models.Cell("normal", "centred", 5, 4, "intercepts"), seed=1)
    found = bench._hierarchy_exact.grid_reference(data)
    middles = (np.arange(80) + 0.5) / 80
    axes = 8 * middles - 4, 4 * middles, 4 * middles
    fixed, scale, noise = np.meshgrid(*axes, indexing="ij")
    log_p = -(fixed**2 + scale**2 + noise**2) / 2
    for y in data.y.reshape(5, 4):
        # The mean of a group, and deviations from it, are independent.
        variance = scale**2 + noise**2 / 4
        log_p += -np.log(variance) / 2 - (y.mean() - fixed) ** 2 / (2 * variance)
        log_p += -3 * np.log(noise) - ((y - y.mean()) ** 2).sum() / (2 * noise**2)
    p = np.exp(log_p - logsumexp(log_p))
    for name, x in {"fixed": fixed, "scale": scale, "noise": noise}.items():
        mean = (p * x).sum()
        sd = np.sqrt((p * (x - mean) ** 2).sum())
        assert np.ravel(found[f"{name}|mean"])[0] == pytest.approx(mean, abs=0.03 * sd)
        assert np.ravel(found[f"{name}|sd"])[0] == pytest.approx(sd, rel=0.03)
        assert found[f"{name}|mcse_mean"].max() < 0.02 * sd
    assert found["fixed|ess"][0] > 5_000


def test_names_of_cells_are_read_back(bench):
    models = bench._hierarchy_models
    assert len({cell.name for cell in models.GRID}) == 4 * 2 * 3 * 3 * 2
    assert all(models.Cell.parse(cell.name) == cell for cell in models.GRID)
    with pytest.raises(ValueError, match="'gamma-centred-5x2-slopes' is not the name of a cell"):
        models.Cell.parse("gamma-centred-5x2-slopes")


def test_a_sample_of_the_grid_meets_all_levels_equally(bench):
    models = bench._hierarchy_models
    cells = models.spread(models.GRID, 24)
    for factor, levels in {"family": 4, "parametrisation": 2, "groups": 3, "rows": 3}.items():
        counts = Counter(getattr(cell, factor) for cell in cells)
        assert list(counts.values()) == [24 // levels] * levels
    assert models.spread(models.GRID, 5) == cells[:5]


def test_data_are_of_the_seed_and_not_of_the_parametrisation(bench):
    models = bench._hierarchy_models
    centred, other = (models.Cell("poisson", p, 5, 2, "slopes") for p in ("centred", "noncentred"))
    data = models.cell_data(centred, 0)
    np.testing.assert_array_equal(models.cell_data(other, 0).y, data.y)
    middle = np.sqrt(models.SMALLEST_SCALE * models.LARGEST_SCALE)
    assert (data.truth.scale < middle).all()
    assert (models.cell_data(centred, 1).truth.scale > middle).all()


def test_moments_of_the_funnel(bench, rng):
    v = rng.normal(0, bench._hierarchy_models.FUNNEL_SCALE, 400_000)
    draws = {"v": v, "log_x": v / 2 + np.log(np.abs(rng.standard_normal(v.size)))}
    [problem] = [
        p
        for p in bench._hierarchy_problems._own(bench._hierarchy_problems.Places())
        if p.name == "funnel"
    ]
    for name, known in problem.known().items():
        assert np.ravel(known.mean)[0] == pytest.approx(draws[name].mean(), abs=0.02)
        assert np.ravel(known.sd)[0] == pytest.approx(draws[name].std(), rel=0.01)


def test_importance_sampling_agrees_with_quadrature(bench):
    references = bench._hierarchy_references
    found = references.regression_reference(30, 1)
    x, y, _ = bench._hierarchy_models.regression_data(30, 1)
    grid = np.linspace(-4, 4, 20_001)
    log_p = references._log_posterior(x, y, grid[:, None])
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean = p @ grid
    sd = np.sqrt(p @ (grid - mean) ** 2)
    assert found["beta|ess"][0] > 0.9 * references.POINTS
    assert found["beta|mean"][0] == pytest.approx(mean, abs=4 * sd / np.sqrt(references.POINTS))
    assert found["beta|sd"][0] == pytest.approx(sd, rel=0.05)


# --------------------------------------------------------------------------------- what is good


def judged(bench, mean, sd, *, few=(), **given):
    """Judge a variable of 200 scalars that are N(0, 1), and a hyperparameter."""
    scores = bench._hierarchy_scores
    part = {"mean": np.zeros(200), "sd": np.ones(200), **given}
    reference = {"x": scores._known(part), **scores.exact({"few": (0.0, 1.0)})}
    return scores.judge({"x": (mean, sd), "few": (np.array(0.05), np.array(0.95))}, reference, few)


@pytest.mark.parametrize(
    ("errors", "sds", "given", "is_good"),
    [
        ([], [], {}, True),
        ([0.2, 0.2], [], {}, True),
        ([0.2, 0.2, 0.2], [], {}, False),
        ([0.26], [], {}, False),
        ([], [1.5, 0.5], {}, True),
        ([0.2], [1.5, 0.5], {}, False),
        ([0.2] * 200, [], {"ess": np.full(200, 450.0)}, False),
        ([0.14] * 200, [], {"ess": np.full(200, 450.0)}, True),
        ([0.2] * 3, [], {"few": ("x",)}, False),
        ([0.2], [], {"few": ("x",)}, False),
        ([0.2] * 3, [], {"ess": np.r_[np.full(5, 100.0), np.full(195, 1e6)]}, True),
        ([], [], {"rhat": np.r_[np.full(11, 1.02), np.ones(189)]}, None),
        ([], [], {"few": ("x",), "rhat": np.r_[1.02, np.ones(199)]}, None),
    ],
)
def test_what_is_good(bench, errors, sds, given, is_good):
    mean, sd = np.zeros(200), np.ones(200)
    mean[: len(errors)] = errors
    sd[200 - len(sds) :] = sds
    assert judged(bench, mean, sd, **given)["is good"] is is_good


def test_the_worst_scalars_are_named(bench):
    mean, sd = np.zeros(200), np.ones(200)
    mean[3], sd[7] = -2.0, 0.25
    row = judged(bench, mean, sd)
    assert (row["worst mean error"], row["worst mean at"]) == (2.0, "x[3]")
    assert (row["lowest sd ratio"], row["worst sd at"]) == (0.25, "x[7]")
    assert row["few: worst mean error"] == pytest.approx(0.05)
    assert row["share within"] == pytest.approx(1 - 2 / 201)
    assert row["judged"] == 201


def test_what_is_not_finite_is_not_good(bench):
    row = judged(bench, np.r_[np.nan, np.zeros(199)], np.ones(200))
    assert row["is good"] is False
    assert row["worst mean at"] == "x[0]"


def test_references_are_kept_and_read(bench, tmp_path, rng):
    references = bench._hierarchy_references
    draws = {"a": rng.standard_normal((4, 500)), "b|c": rng.standard_normal((4, 500, 2))}
    path = tmp_path / "folder" / "x.npz"
    references.keep(path, references.summary(draws) | {"cpu": np.array(1.0)})
    known = bench._hierarchy_scores.load(path)
    assert sorted(known) == ["a", "b|c"]
    np.testing.assert_allclose(known["b|c"].mean, draws["b|c"].mean((0, 1)))
    np.testing.assert_allclose(known["b|c"].mean_error, 2_000**-0.5, rtol=0.3)
    np.testing.assert_allclose(known["b|c"].sd_error, 4_000**-0.5, rtol=0.3)
    assert known["a"].is_usable
    assert [p.name for p in path.parent.iterdir()] == ["x.npz"]


def test_parts_of_draws_have_the_moments_of_all(bench, rng):
    x = 1e6 + rng.standard_normal((1_000, 3))
    parts = ({"x": x[i : i + 300]} for i in range(0, 1_000, 300))
    mean, sd = bench._hierarchy_fits.pooled(parts)["x"]
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(sd, x.std(0, ddof=1), rtol=1e-8)


def test_nuts_is_good_from_when_it_stays_good(bench):
    x = np.tile([-1.0, 1.0], 100)
    x[:60] += 3.0
    # Right again once the beginning weighs little.
    x = np.concatenate([x, np.tile([-1.0, 1.0], 3_000)])
    steps = np.full((1, len(x)), 2.0)
    groups = {
        "posterior": Dataset({"x": (("chain", "draw"), x[None])}),
        "sample_stats": Dataset({"n_steps": (("chain", "draw"), steps)}),
        "warmup_sample_stats": Dataset({"n_steps": (("chain", "draw"), np.full((1, 100), 2.0))}),
    }
    reference = bench._hierarchy_scores.exact({"x": (0.0, 1.0)})
    found = bench._hierarchy_fits.course(DataTree.from_dict(groups), reference, (), 126.0)
    ends = np.unique(np.linspace(0, len(x), 21).astype(int)[1:])
    is_off = [abs(x[:end].mean()) > 0.1 or x[:end].std(ddof=1) > 1.1 for end in ends]
    first = ends[np.flatnonzero(is_off).max() + 1]
    assert found["is good"]
    assert found["gradients"] == 2 * (100 + first)
    assert found["CPU s to good"] == pytest.approx(126.0 * (100 + first) / (100 + len(x)))


# ------------------------------------------------------------------------------ time and studies


def test_the_limit_ends_a_fit_and_is_taken_back(bench):
    fits = bench._hierarchy_fits
    before = resource.getrlimit(resource.RLIMIT_CPU), signal.getsignal(signal.SIGXCPU)
    row = {"CPU s": None, "note": "begun"}
    with fits.noted(row, fits.Settings(limit=1_000)), fits.limited(1_000):
        signal.raise_signal(signal.SIGXCPU)
    assert row == {"CPU s": 1_000, "note": "begun; not done after 1,000 CPU s"}
    assert (resource.getrlimit(resource.RLIMIT_CPU), signal.getsignal(signal.SIGXCPU)) == before


def test_evaluations_are_counted_where_they_are_known(bench):
    counted = SimpleNamespace(densities=1, gradients=2, curvatures=3)
    expected = {"densities": 1, "gradients": 2, "curvatures": 3}
    found = bench._hierarchy_fits.evaluations
    assert found(SimpleNamespace(evaluations=counted)) == expected
    assert found(SimpleNamespace(ladder=SimpleNamespace(evaluations=counted))) == expected
    assert found(SimpleNamespace(ladder=None)) == dict.fromkeys(expected)


def test_intervals_of_exact_draws_cover(bench, rng):
    studies = bench._hierarchy_studies
    centre = rng.standard_normal((2_000, 1))
    truth = centre + rng.standard_normal((2_000, 1))
    draws = centre + rng.standard_normal((400, 2_000, 1))
    assert studies.coverage(draws, truth) == pytest.approx(0.9, abs=0.02)
    assert studies.uniformity((np.arange(100) + 0.5) / 100) == 1
    assert studies.uniformity(np.full(100, 0.05)) < 1e-6


def test_draws_of_the_prior_are_calibrated(bench, monkeypatch):
    """Whatever the data are: the model's prior is the one that the truth is drawn from."""
    studies, models = bench._hierarchy_studies, bench._hierarchy_models
    data = models.prior_data(studies.CALIBRATED["poisson"], np.random.default_rng(0))
    with models.hierarchy(data, centred=False):
        names = ["fixed", "scale", "raw", "effects"]
        prior = pm.draw(
            [pm.modelcontext(None)[name] for name in names], 999, random_seed=1, mode=NUMPY
        )

    def sample(draws, random_seed):
        assert draws == studies.RANKED_DRAWS
        variables = {
            name: (("chain", "draw", *(f"{name}{i}" for i in range(x.ndim - 1))), x[None])
            for name, x in zip(names, prior, strict=True)
        }
        return DataTree.from_dict({"posterior": Dataset(variables)})

    approx = SimpleNamespace(ddim=22, sample=sample)
    monkeypatch.setattr(studies.fits, "fit_ours", lambda *_: approx)
    monkeypatch.setattr(studies.fits, "add_report", lambda *_: None)
    rows = studies.calibrate("poisson", range(100), bench._hierarchy_fits.Settings())
    for quantity in ("fixed", "scale", "effect"):
        assert studies.uniformity([row["ranks"][quantity] for row in rows]) > 0.01
    # Effects of one data set share its fixed effect and scale.
    assert np.mean([row["coverage"] for row in rows]) == pytest.approx(0.9, abs=0.05)


def test_growth_is_the_power(bench):
    rows = [
        {"groups": n, "CPU s": 5 + 1e-3 * n**1.2, "of it compiling": 5, "peak GB": 1 + n * 1e-6}
        | {"GB at the start": 1}
        for n in (100, 1_000, 10_000)
    ]
    assert bench._hierarchy_tables.growth(rows, "time") == pytest.approx(1.2)
    assert bench._hierarchy_tables.growth(rows, "memory") == pytest.approx(1)
