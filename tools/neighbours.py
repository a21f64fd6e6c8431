"""Fit the models of other libraries, and sample by nutpie.

    python tools/neighbours.py

Run by `make install-check` where all of them are installed.
"""

import sys
from importlib.metadata import version

import bambi
import numpy as np
import pandas as pd
import pymc as pm
import pymc_extras
from pymc_marketing import clv

import pymc_flows as pmf

PACKAGES = (
    *("pymc-flows", "pymc-extras", "pymc-marketing", "bambi", "nutpie"),
    *("pymc", "pytensor", "numba", "jax", "numpy", "scipy", "pandas", "xarray", "arviz"),
    *("h5netcdf", "h5py", "matplotlib", "better-optimize", "preliz"),
)


def fit(name: str, model: pm.Model, expected: dict[str, float]) -> pmf.NormalizingFlow:
    """Fit briefly; the means must be about what the data were drawn with."""
    approx = pmf.fit(
        500, formula="scale-loc", model=model, backend="jax", random_seed=1, progressbar=False
    )
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


if __name__ == "__main__":
    main()
