"""What an installation must do at least: fit, sample, save, load, and draw.

    python tools/smoke.py [--not-in FOLDER]

Each backend fits a posterior that is known exactly. What is not installed is said, not tested.
"""

import argparse
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pymc as pm

import pymc_flows as pmf

PACKAGES = ("pymc-flows", "pymc", "pytensor", "numba", "jax", "numpy", "scipy", "xarray", "arviz")
Y = np.array([0.3, 1.2, -0.4, 2.0, 1.1, 0.7, 0.2, 1.6, -0.1, 0.9])
# mu ~ N(0, 1) and y ~ N(mu, 1): the precisions add up.
MEAN, SD = Y.sum() / (Y.size + 1), (Y.size + 1) ** -0.5


def installed(package: str) -> str:
    """Return a package's version, or say that it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def check_fit(model: pm.Model, backend: str) -> pmf.NormalizingFlow:
    """Fit on a backend; the posterior must be found to a sixth of its standard deviation."""
    approx = pmf.fit(
        500, formula="scale-loc", model=model, backend=backend, random_seed=1, progressbar=False
    )
    draws = approx.sample(4_000, random_seed=1).posterior["mu"].to_numpy()
    error = (draws.mean() - MEAN) / SD
    if not (abs(error) < 1 / 6 and abs(draws.std() / SD - 1) < 1 / 6):
        sys.exit(
            f"{backend}: found {draws.mean():.3f} ± {draws.std():.3f}, not {MEAN:.3f} ± {SD:.3f}"
        )
    sys.stdout.write(f"fits on {backend}\n")
    return approx


def main() -> None:
    """Read the command line, and do it all."""
    parser = argparse.ArgumentParser(description="Fit, sample, save, load and draw.")
    parser.add_argument("--not-in", type=Path, help="where the package must not be imported from")
    folder = parser.parse_args().not_in
    if folder is not None and Path(pmf.__file__).is_relative_to(folder.resolve()):
        sys.exit(f"{pmf.__file__} is in {folder}")
    sys.stdout.write("".join(f"{name:12}{installed(name)}\n" for name in PACKAGES))

    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1)
        pm.Normal("y", mu, 1, observed=Y)
    for backend in ("numba", "jax") if find_spec("jax") else ("numba",):
        approx = check_fit(model, backend)

    if find_spec("h5netcdf") and find_spec("h5py"):
        with tempfile.TemporaryDirectory() as place:
            approx.save(Path(place) / "approx.nc")
            loaded = pmf.load(Path(place) / "approx.nc", model)
        expected, found = (a.sample_and_log_prob(5, random_seed=2)[1] for a in (approx, loaded))
        np.testing.assert_array_equal(found, expected)
        sys.stdout.write("saves and loads\n")
    if find_spec("matplotlib"):
        import matplotlib

        matplotlib.use("Agg")
        pmf.plots.history(approx)
        sys.stdout.write("draws\n")


if __name__ == "__main__":
    main()
