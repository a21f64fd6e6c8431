"""A soft sum-to-zero constraint: as a part of low rank, and in a dense precision matrix."""

import numpy as np
import pymc as pm
import pytest
from scipy import sparse

from posteriors import variances
from pymc_flows.field import FieldOptions, Posterior, fit_field
from pymc_flows.field.conditional.newton import FieldModes
from pymc_flows.field.factors import factoring
from pymc_flows.field.factors.low_rank import LowRankFactoring
from pymc_flows.model.curvature import long_rows
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.structure import structure_of

SIDE = 13
OPTIONS = FieldOptions(rounds=(48,), values=64, effective=10, seconds_per_round=1e9, flow_rounds=0)


def areas():
    """Counts of a smooth map."""
    line = sparse.diags_array([np.ones(SIDE - 1)] * 2, offsets=[-1, 1])
    neighbours = sparse.kronsum(line, line).toarray()
    x = np.linspace(0, 1, SIDE)
    rate = 3 * np.exp(np.sin(4 * x)[:, None] + np.cos(3 * x))
    with pm.Model() as model:
        scale = pm.HalfNormal("scale", 1)
        phi = pm.ICAR("phi", W=neighbours)
        counts = np.random.default_rng(1).poisson(rate).ravel()
        pm.Poisson("y", pm.math.exp(1 + scale * phi), observed=counts)
    return model


@pytest.fixture(scope="module")
def posteriors():
    """Of one model: with the constraint apart, and without."""
    model, found = areas(), []
    with pytest.MonkeyPatch.context() as patch:
        for most in (long_rows.MOST, 0):
            patch.setattr(long_rows, "MOST", most)
            density = ModelDensity(model)
            found.append(Posterior.of(density, structure_of(density)))
            found[-1].pattern  # noqa: B018 - reads the graph
    return found


def test_gaussians_over_the_field_are_the_same(posteriors):
    hyper, found, factors = np.array([[-1.0], [0.5]]), [], []
    for posterior in posteriors:
        chosen = factoring(posterior.pattern, posterior.groups, posterior.rows)
        modes = FieldModes(posterior, chosen)
        found.append(modes.find(hyper, np.zeros((2, 169)), steps=50, tolerance=1e-9))
        means = [gaussian.mean for gaussian in found[0]]
        factors.append(
            [modes.factor(modes.curvature(*at)) for at in zip(hyper, means, strict=True)]
        )
        assert isinstance(chosen, LowRankFactoring) == (posterior is posteriors[0])
    assert posteriors[0].pattern.nnz == 169 + 4 * SIDE * (SIDE - 1)
    for apart, dense in zip(*found, strict=True):
        np.testing.assert_allclose(apart.mean, dense.mean, atol=1e-5)
        assert apart.log_marginal == pytest.approx(dense.log_marginal, abs=1e-3)
    for apart, dense in zip(*factors, strict=True):
        np.testing.assert_allclose(variances(apart, 169), variances(dense, 169), rtol=1e-9)
        assert apart.half_log_det == pytest.approx(dense.half_log_det)


def test_fits_agree(posteriors):
    apart, dense = (fit_field(p, options=OPTIONS, random_seed=1).values for p in posteriors)
    moments = []
    for values in (apart, dense):
        assert values.overall.is_trusted
        weights = np.exp(values.log_weights)
        mean = weights @ values.hyper[:, 0]
        moments.append((mean, np.sqrt(weights @ (values.hyper[:, 0] - mean) ** 2)))
    # Both have noise of their own: draws of the field come by other roots of the same matrix.
    noise = np.hypot(apart.error, dense.error)
    assert abs(apart.overall.log_evidence - dense.overall.log_evidence) < 4 * noise + 0.05
    (mean, sd), (other_mean, other_sd) = moments
    assert abs(mean - other_mean) < 0.25 * sd
    assert abs(sd / other_sd - 1) < 0.2
