"""Fit the models of other libraries, and sample by nutpie.

    python tools/neighbours.py

Run by `make install-check` where all of them are installed.
"""

import sys
from importlib.metadata import version
from typing import Any

import bambi
import numpy as np
import pandas as pd
import pymc as pm
import pymc_extras
from pymc_marketing import clv
from pymc_marketing.mmm import GeometricAdstock, LogisticSaturation
from pymc_marketing.mmm.multidimensional import MMM

import pymc_flows as pmf

PACKAGES = (
    *("pymc-flows", "pymc-extras", "pymc-marketing", "bambi", "nutpie"),
    *("pymc", "pytensor", "numba", "jax", "numpy", "scipy", "pandas", "xarray", "arviz"),
    *("h5netcdf", "h5py", "matplotlib", "better-optimize", "preliz"),
)


def fit(
    name: str, model: pm.Model, expected: dict[str, float], **kwargs: Any
) -> pmf.NormalizingFlow:
    """Fit briefly; the means must be about what the data were drawn with."""
    options = kwargs or {"n": 500, "formula": "scale-loc", "backend": "jax"}
    approx = pmf.fit(model=model, random_seed=1, progressbar=False, **options)
    means = approx.sample(1_000, random_seed=1).posterior.mean()
    for variable, value in expected.items():
        found = float(means[variable])
        if not abs(found - value) < 0.7:
            sys.exit(f"{name}: the mean of {variable} is {found:.2f}, expected about {value}")
    sys.stdout.write(f"fits a model of {name}\n")
    return approx


def linear(rng: np.random.Generator) -> pm.Model:
    """Make a linear regression with slope 2, by Bambi."""
    x = rng.normal(size=60)
    data = pd.DataFrame({"x": x, "y": 1 + 2 * x + rng.normal(size=60)})
    model = bambi.Model("y ~ x", data)
    model.build()
    return model.backend.model


def hierarchy(rng: np.random.Generator) -> bambi.Model:
    """Make a Poisson regression with slope 0.5, an offset and effects of groups, by Bambi."""
    group = np.repeat(list("abcdef"), 30)
    effect = np.repeat(rng.normal(0, 0.5, 6), 30)
    x, exposure = rng.normal(size=180), rng.uniform(1, 3, 180)
    y = rng.poisson(exposure * np.exp(0.3 + 0.5 * x + effect))
    data = pd.DataFrame({"y": y, "x": x, "log_exposure": np.log(exposure), "group": group})
    model = bambi.Model("y ~ x + offset(log_exposure) + (1|group)", data, family="poisson")
    model.build()
    return model


def check_hierarchy(rng: np.random.Generator) -> None:
    """Fit by the default call, and let Bambi predict from the draws."""
    model = hierarchy(rng)
    approx = fit("bambi, a hierarchy", model.backend.model, {"x": 0.5}, seconds=60)
    draws = approx.sample(300, random_seed=1)
    effects = draws.posterior["1|group"]
    if set(effects.dims) != {"chain", "draw", "group__factor_dim"}:
        sys.exit(f"bambi: the effects of groups have dims {effects.dims}")
    model.predict(draws, kind="response")
    predicted = draws.posterior_predictive["y"].mean(("chain", "draw")).to_numpy()
    observed = np.asarray(model.data["y"])
    if not np.corrcoef(predicted, observed)[0, 1] > 0.5:
        sys.exit("bambi: predictions from the draws have nothing to do with the data")
    sys.stdout.write("predicts by bambi\n")


def media(rng: np.random.Generator) -> pm.Model:
    """Make pymc-marketing's media mix of two channels, the first of which sells more."""
    n = 80
    x = pd.DataFrame(
        {
            "date": pd.date_range("2023-01-02", periods=n, freq="W-MON"),
            "tv": rng.uniform(0, 1, n),
            "web": rng.uniform(0, 1, n),
        }
    )
    y = 1 + 2 * np.tanh(2 * x.tv) + np.tanh(x.web) + rng.normal(0, 0.1, n)
    mix = MMM(
        date_column="date",
        target_column="y",
        channel_columns=["tv", "web"],
        adstock=GeometricAdstock(l_max=4),
        saturation=LogisticSaturation(),
    )
    mix.build_model(x, y.rename("y"))
    return mix.model


def check_media(rng: np.random.Generator) -> None:
    """Fit a model whose variables have named dimensions, by a formula and by the default call."""
    model = media(rng)
    for options in ({"n": 500, "formula": "scale-loc"}, {"seconds": 60}):
        approx = fit("pymc-marketing, a media mix", model, {}, **options)
        draws = approx.sample(200, random_seed=1)
        posterior = draws.posterior
        if posterior["channel_contribution"].dims != ("chain", "draw", "date", "channel"):
            sys.exit(f"the contributions have dims {posterior['channel_contribution'].dims}")
        shares = posterior["channel_contribution"].mean(("chain", "draw", "date"))
        if not float(shares.sel(channel="tv")) > float(shares.sel(channel="web")):
            sys.exit("pymc-marketing: the channel that sells more contributes less")
        predicted = pm.sample_posterior_predictive(
            draws, model=model, random_seed=1, progressbar=False
        )
        if predicted.posterior_predictive["y"].dims != ("chain", "draw", "date"):
            sys.exit("pymc-marketing: the predictions have lost their dims")
    sys.stdout.write("predicts by pymc-marketing\n")


def mixture(rng: np.random.Generator) -> pm.Model:
    """Make a mixture whose labels pymc-extras sums out; its centres are 3 and −1."""
    y = np.append(rng.normal(3, 1, 40), rng.normal(-1, 1, 40))
    with pm.Model() as model:
        low, gap = pm.Normal("low", 0, 3), pm.HalfNormal("gap", 5)
        label = pm.Bernoulli("label", 0.5, shape=y.size)
        pm.Normal("y", low + gap * label, 1, observed=y)
    return pymc_extras.marginalize(model, ["label"])


def customers(rng: np.random.Generator) -> pm.Model:
    """Make pymc-marketing's model of how often customers buy before they stop."""
    frequency = rng.poisson(3, 80)
    age = rng.uniform(30, 40, 80)
    data = pd.DataFrame(
        {
            "customer_id": np.arange(80),
            "frequency": frequency,
            "recency": np.where(frequency, age * rng.uniform(0.5, 1, 80), 0.0),
            "T": age,
        }
    )
    model = clv.BetaGeoModel()
    model.build_model(data)
    return model.model


def main() -> None:
    """Say the versions, then fit and sample."""
    sys.stdout.write("".join(f"{name:16}{version(name)}\n" for name in PACKAGES))
    rng = np.random.default_rng(1)
    approx = fit("bambi", linear(rng), {"x": 2.0})
    draws = pmf.sample(
        approx, 200, tune=200, chains=2, sampler="nutpie", random_seed=1, progressbar=False
    )
    slope = float(draws.posterior["x"].mean())
    if not abs(slope - 2) < 0.7:
        sys.exit(f"nutpie: the mean of x is {slope:.2f}, expected about 2")
    sys.stdout.write("samples by nutpie\n")
    fit("pymc-extras", mixture(rng), {"low": -1.0, "gap": 4.0})
    fit("pymc-marketing", customers(rng), {})
    check_hierarchy(rng)
    check_media(rng)


if __name__ == "__main__":
    main()
