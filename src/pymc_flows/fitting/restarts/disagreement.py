"""R-hat of fits: how far they are apart, relative to the spread of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from xarray import Dataset

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.model.draws import to_datatree

# Draws of each fit.
DRAWS = 1_000
# Largest R-hat of agreement; means then differ by about 0.3 standard deviations.
LIMIT = 1.05


def disagreement(fits: Sequence[NormalizingFlow], seeds: Sequence[int]) -> Dataset:
    """Rank-normalised split R-hat of the free variables, where each fit is a chain.

    The larger one of draws and of distances from the median, which compares locations and scales.
    Vehtari, Gelman, Simpson, Carpenter & Bürkner, Bayesian Analysis 16(2), 2021. There must be two
    or more fits, of one model. Variables have their dims and coords.
    """
    from arviz_stats.base.array import array_stats  # slow to import

    model = fits[0].model
    names = [rv.name for rv in model.free_RVs]
    draws: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for fit, seed in zip(fits, seeds, strict=True):
        rng = np.random.default_rng(seed)
        points, _ = fit.q.draw(DRAWS, rng)
        everything = fit.draws_at(points, model, rng)
        for name in names:
            draws[name].append(everything[name])
    chains = {name: np.concatenate(values) for name, values in draws.items()}
    posterior = to_datatree(model, chains, chains=len(fits)).children["posterior"].to_dataset()
    found = posterior.isel(chain=0, draw=0, drop=True)
    with np.errstate(all="ignore"):  # constants have no R-hat
        for name in names:
            values = array_stats.rhat(posterior[name].values, chain_axis=0, draw_axis=1)
            found[name] = found[name].dims, np.asarray(values)
    return found.drop_attrs()


def worst(found: Dataset) -> list[tuple[str, float]]:
    """Names with coords, such as ``'theta[Choate]'``, and R-hat, the largest first."""
    rows = []
    for name, values in found.data_vars.items():
        for place in np.ndindex(values.shape):
            labels = [
                str(values.coords[dim].values[i] if dim in values.coords else i)
                for dim, i in zip(values.dims, place, strict=True)
            ]
            label = f"{name}[{', '.join(labels)}]" if labels else str(name)
            rows.append((label, float(values.values[place])))
    return sorted(rows, key=lambda row: -np.nan_to_num(row[1], nan=-np.inf))
