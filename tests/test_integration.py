"""install(): flows under PyMC's names; groups of flows in PyMC's own approximations and fits."""

import numpy as np
import pymc as pm
import pytensor
import pytest
from numpy.testing import assert_allclose
from pymc.variational.inference import KLqp
from pymc.variational.opvi import Approximation, Group, GroupError
from scipy import stats

import pymc_flows as pmf
from pymc_flows.approximation import NormalizingFlowGroup
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import FlowError, FormulaError

OWNERS = {"pymc": pm, "Group": Group, "Approximation": Approximation}
ON_NUMPY = {"progressbar": False, "compile_kwargs": {"mode": NUMPY}}


@pytest.fixture
def installed():
    pmf.install()
    yield
    pmf.uninstall()


@pytest.fixture(scope="module")
def model():
    with pm.Model(coords={"k": ["u", "v"]}) as model:
        a = pm.HalfNormal("a")
        x = pm.Normal("x", 1, 2, dims="k")
        b = pm.Normal("b", 0, 1)
        pm.Deterministic("m", a * x + b, dims="k")
        pm.Normal("y", x + b, a, observed=[0.5, 1.0], dims="k")
    return model


def namespaces():
    """The objects themselves behind all names; PyMC adds lazily loaded modules to its own."""
    return {
        (owner, name): value
        for owner, thing in OWNERS.items()
        for name, value in vars(thing).items()
        if not isinstance(value, type(pm))
    }


# ------------------------------------------------------------------------------ install, uninstall


def test_uninstall_undoes_everything():
    before = namespaces()
    pmf.uninstall()  # without an install: nothing happens
    for times in (1, 3):
        for _ in range(times):
            pmf.install()
        changed = namespaces()
        assert changed["pymc", "NFVI"] is pmf.NFVI
        assert changed["pymc", "NormalizingFlow"] is pmf.NormalizingFlow
        assert changed["pymc", "fit"] is not before["pymc", "fit"]
        pmf.uninstall()
        after = namespaces()
        assert after.keys() == before.keys()
        assert all(after[key] is before[key] for key in before)
        pmf.uninstall()


def test_install_wraps_what_is_there_at_the_time(monkeypatch):
    def fit(n, method, model, **kwargs):
        return n, method, model

    monkeypatch.setattr(pm, "fit", fit)
    pmf.install()
    try:
        assert pm.fit(3, "advi", "model") == (3, "advi", "model")
    finally:
        pmf.uninstall()
    assert pm.fit is fit


def test_importing_installs_nothing():
    assert not hasattr(pm, "NFVI")
    with pytest.raises(KeyError):
        Group.group_for_short_name("planar")


# ---------------------------------------------------------------------------------------- pm.fit


@pytest.mark.usefixtures("installed")
def test_pm_fit_knows_nfvi(model):
    kwargs = {"progressbar": False, "backend": "jax", "obj_n_mc": 2}
    approx = pm.fit(3, method="NFVI = planar*2", model=model, **kwargs)
    assert repr(approx) == "NormalizingFlow('planar*2', dim=4)"
    assert approx.hist.shape == (3,)


@pytest.mark.usefixtures("installed")
def test_pm_fit_passes_the_rest_on(model, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "pymc_flows.integration.fit_flow", lambda n, **kwargs: calls.append((n, kwargs))
    )
    pm.fit(method="nfvi", model=model, start={"a": 2.0}, inf_kwargs={"jitter": 1})
    pm.fit(7, "nfvi=loc", model, 3, {"a": 1.0}, None, {}, score=False)
    assert calls == [
        (
            10_000,
            {"method": "nfvi", "model": model, "start": {"a": 2.0}, "inf_kwargs": {"jitter": 1}},
        ),
        (
            7,
            {
                "method": "nfvi=loc",
                "model": model,
                "random_seed": 3,
                "start": {"a": 1.0},
                "inf_kwargs": {},
                "score": False,
            },
        ),
    ]


@pytest.mark.usefixtures("installed")
def test_pm_fit_refuses_what_it_refused(model):
    with pytest.raises(FormulaError, match="planr"):
        pm.fit(3, method="nfvi=planr", model=model)
    with pytest.raises(NotImplementedError, match="start_sigma"):
        pm.fit(3, method="nfvi", model=model, start_sigma={"x": 1.0})
    with pytest.raises(KeyError, match="method should be one of"):
        pm.fit(3, method="nfvy", model=model)
    with pytest.raises(TypeError, match="method should be one of"):
        pm.fit(3, method=3, model=model)


@pytest.mark.usefixtures("installed")
def test_pm_fit_still_runs_advi_and_takes_an_inference(model):
    approx = pm.fit(3, method="advi", model=model, random_seed=1, **ON_NUMPY)
    assert isinstance(approx, pm.MeanField)
    with model:
        assert isinstance(pm.fit(2, **ON_NUMPY), pm.MeanField)
        inference = pm.NFVI("loc")
        kwargs = {"progressbar": False, "backend": "jax", "obj_n_mc": 2}
        assert pm.fit(2, method=inference, **kwargs) is inference.approx


# ----------------------------------------------------------------------------------------- groups


@pytest.mark.usefixtures("installed")
def test_a_group_by_formula(model):
    group = Group([model["x"], model["b"]], vfam="Planar * 2", model=model)
    assert type(group) is NormalizingFlowGroup
    assert [(p.name, p.type.shape) for p in group.params] == [
        ("b", (2,)),
        ("u", (2, 3)),
        ("w", (2, 3)),
    ]
    assert list(group.ordering) == ["x", "b"]
    waiting = Group(None, vfam="loc", model=model)
    assert str(waiting) == "NormalizingFlowGroup[undefined](loc)"


@pytest.mark.usefixtures("installed")
def test_groups_of_pymc_keep_their_names(model):
    for name in ("mean_field", "MF", "full_rank", "fr"):
        group = Group([model["x"]], vfam=name, model=model)
        assert type(group).__module__ == "pymc.variational.approximations"


@pytest.mark.usefixtures("installed")
def test_a_group_takes_the_options_of_a_flow(model):
    group = Group(
        [model["b"], model["x"]],
        vfam="planar-loc",
        model=model,
        jitter=0,
        start={"x": [5.0, 6.0], "a": 3.0},
        random_seed=1,
    )
    assert_allclose(group.params[-1].get_value(), [[0, 5, 6]])
    for kwargs, error in [({"nope": 1}, TypeError), ({"jitter": -1}, FlowError)]:
        with pytest.raises(error):
            Group([model["x"]], vfam="loc", model=model, **kwargs)
    with pytest.raises(TypeError, match="both"):
        Group([model["x"]], vfam="loc", params={0: {}}, model=model)


@pytest.mark.usefixtures("installed")
def test_an_unknown_family_is_a_key_error_with_a_note(model):
    with pytest.raises(KeyError, match="No such group: 'planr'") as caught:
        Group([model["x"]], vfam="planr", model=model)
    (note,) = caught.value.__notes__
    assert "unknown flow 'planr'" in note
    assert "Did you mean 'planar'?" in note


def test_groups_are_checked_by_pymc(model):
    def flow(variables):
        return NormalizingFlowGroup(variables, flow="loc", model=model)

    a, x, b = model.free_RVs
    for groups, match in [
        ([flow([a, x]), flow([x, b])], "duplicates"),
        ([flow([a, x])], "No approximation is specified"),
        ([flow(None), flow(None)], "More than one group"),
    ]:
        with pytest.raises(GroupError, match=match):
            Approximation(groups, model=model)
    with pytest.raises(GroupError, match="empty"):
        flow([])


def mixed(model, **kwargs):
    """A flow on two variables, not in the model's order, mean field on the rest."""
    with model:
        first = Group([model["b"], model["a"]], vfam="planar*2-scale-loc", **kwargs)
        return Approximation([first, Group(None, vfam="mean_field")])


@pytest.mark.usefixtures("installed")
def test_groups_share_a_model(model):
    approx = mixed(model)
    assert str(approx) == (
        "Approximation{NormalizingFlowGroup[2](planar*2-scale-loc) & MeanFieldGroup[2]}"
    )
    names = ["b", "u", "w", "rho", "loc", "mu", "rho"]
    assert [p.name for p in approx.params] == names
    assert (approx.ndim, approx.ddim, approx.has_logq) == (4, 4, True)
    assert list(approx.replacements) == [model.rvs_to_values[model[n]] for n in ("b", "a", "x")]


@pytest.mark.usefixtures("installed")
def test_log_q_of_groups_adds_up(model, rng):
    approx = mixed(model)
    flow, rest = approx.groups
    z0 = [rng.standard_normal((5, 2)) for _ in range(2)]
    nodes = [approx.symbolic_logq, approx.symbolic_random, flow.symbolic_logq]
    given = dict(zip([flow.symbolic_initial, rest.symbolic_initial], z0, strict=True))
    fn = pytensor.function(list(given), nodes, mode=NUMPY)
    total, draws, by_flow = fn(*z0)
    mu, rho = (p.get_value() for p in rest.params)
    normal = stats.norm(mu, np.log1p(np.exp(rho)))
    assert_allclose(total, by_flow + normal.logpdf(draws[:, 2:]).sum(axis=1), rtol=1e-10)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("draws", [1, 3])
def test_pymc_fits_groups_with_a_flow(model, draws):
    approx = mixed(model, random_seed=1)
    before = [p.get_value() for p in approx.params]
    fitted = KLqp(approx).fit(4, obj_n_mc=draws, **ON_NUMPY)
    assert fitted is approx
    assert np.isfinite(approx.hist).all()
    assert approx.hist.shape == (4,)
    for p, value in zip(approx.params, before, strict=True):
        assert np.all(p.get_value() != value), p


@pytest.mark.usefixtures("installed")
def test_draws_of_groups_keep_their_names(model):
    """PyMC 6.4 takes them by position in the model's order, whatever the order of the groups."""
    with pytensor.config.change_flags(mode=NUMPY):
        with model:
            start = {"a": 9.0, "x": [20.0, 30.0], "b": -7.0}
            flow = Group([model["b"]], vfam="loc", start=start, jitter=0)
            rest = Group([model["x"], model["a"]], vfam="scale", start=start, jitter=0)
            approx = Approximation([flow, rest])
        posterior = approx.sample(400, random_seed=1).posterior
    assert float(posterior.b.mean()) == pytest.approx(-7, abs=0.3)
    assert_allclose(posterior.x.mean(("chain", "draw")), [20, 30], atol=0.3)
    assert float(np.log(posterior.a).mean()) == pytest.approx(np.log(9), abs=0.3)
    assert_allclose(posterior.m, posterior.a * posterior.x + posterior.b)


def test_pymc_itself_still_needs_the_repairs():
    """When this fails, `install` has less to do."""
    with pm.Model():
        x = pm.Normal("x", initval=5.0)
        s = pm.Normal("s", initval=-5.0)
        groups = [Group([v], vfam="mf", start_sigma={"x": 1e-6, "s": 1e-6}) for v in (s, x)]
        approx = Approximation(groups)
    assert not hasattr(approx, "rng")
    with pytensor.config.change_flags(mode=NUMPY):
        posterior = approx.sample(3).posterior
    assert_allclose(posterior.x, -5, atol=0.1)  # it starts at 5
    assert_allclose(posterior.s, 5, atol=0.1)


@pytest.mark.parametrize("draws", [None, 3])
def test_pymcs_klqp_fits_a_normalizing_flow(model, draws):
    """Without our loop: the gradient of PyMC's own objective through the approximation."""
    approx = pmf.NormalizingFlow("planar*2-scale-loc", model=model, random_seed=1)
    before = [p.get_value() for p in approx.params]
    inference = KLqp(approx, beta=0.5)
    inference.fit(4, obj_n_mc=draws, **ON_NUMPY)
    assert np.isfinite(approx.hist).all()
    for p, value in zip(approx.params, before, strict=True):
        assert np.all(p.get_value() != value), p
    inference.refine(2, progressbar=False)
    assert inference.hist.shape == (6,)
