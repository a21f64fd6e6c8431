"""Profiles along axes: a density, and tails as long as those of scales near 0."""

from types import SimpleNamespace

import numpy as np
import pytest

from posteriors import CentredMeans, on_grid
from pymc_flows.field import FieldOptions, fit_field
from pymc_flows.field.hyper.profile import PiecewiseExponential, ProfileProposal, follow_axes


def bent():
    axis = PiecewiseExponential(np.array([-3.0, 0.0, 2.0]), np.array([-1.0, 0.0, -3.0]), 0.8, -2.0)
    lower = np.array([[0.5, 0.0], [-0.6, 0.3]])
    return ProfileProposal(np.array([-1.0, 0.2]), lower, (axis, axis))


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_density_of_bent_axes_has_mass_1_and_is_that_of_the_draws(factor, rng):
    proposal = bent().stretched(np.array([False, True]), factor)
    grid = [np.linspace(-14, 4, 1201), np.linspace(-15, 9, 1501)]
    mean, sd, log_mass = on_grid(proposal.log_prob, grid)
    assert abs(log_mass) < 2e-3
    draws = proposal.draw(2**14, rng)
    np.testing.assert_allclose((draws.mean(axis=0) - mean) / sd, 0, atol=0.01)
    np.testing.assert_allclose(draws.std(axis=0) / sd, 1, atol=0.01)


def test_others_stay_where_they_are_far_out_on_an_axis():
    proposal = bent()
    z = np.array([[-2.0, 0.0], [-20.0, 0.0]])
    places = proposal.loc + z @ proposal.lower.T
    places[1, 1] = places[0, 1]
    # The second coordinate is at its centre at both.
    first = proposal.axes[0]
    expected = first.log_prob(z[:, 0]) + first.log_prob(z[:, 1]) - np.log(0.5 * 0.3)
    np.testing.assert_allclose(proposal.log_prob(places), expected)


@pytest.mark.parametrize("ends", [(-0.5, np.inf), (-np.inf, 0.5), (-0.5, 0.5)])
def test_a_side_without_values_gets_no_long_tail(ends, rng):
    def at(hyper, fields):
        values = [-0.5 * g @ g for g in hyper]
        inside = (ends[0] < hyper[:, 0]) & (hyper[:, 0] < ends[1])
        pairs = zip(values, inside, strict=True)
        return [SimpleNamespace(log_marginal=v, mode=None) if ok else None for v, ok in pairs]

    mode = SimpleNamespace(
        gaussian=SimpleNamespace(hyper=np.zeros(1), log_marginal=0.0, mode=0), covariance=np.eye(1)
    )
    conditional = SimpleNamespace(at=at, chunk=8)
    proposal = follow_axes(conditional, mode, SimpleNamespace(tell=lambda stage: None))
    draws = proposal.draw(256, rng)
    assert 0.35 < (draws < 0).mean() < 0.65
    _, _, log_mass = on_grid(proposal.log_prob, [np.linspace(-20, 20, 4001)])
    assert abs(log_mass) < 2e-3


def test_a_scale_near_zero_has_its_whole_tail():
    """Groups that do not differ: the log scale goes down to −∞, and the prior alone ends it."""
    y = np.random.default_rng(3).standard_normal(20)
    target = CentredMeans(0.9 * y / y.std(), 1.0)
    options = FieldOptions(rounds=(128, 64), values=64, flow_rounds=0, effective=1_000)
    axes = np.meshgrid(np.linspace(-1.5, 1.5, 61), np.linspace(-25, 2, 541), indexing="ij")
    points = np.stack(axes, axis=-1).reshape(-1, 2)
    log_p = target.log_marginal(points)
    p = np.exp(log_p - log_p.max())
    for seed in range(3):
        values = fit_field(target.posterior(), options=options, random_seed=seed).values
        weights = np.exp(values.log_weights)
        for place in (-2.0, -5.0, -10.0):
            exact = p[points[:, 1] < place].sum() / p.sum()
            assert exact > 0.02
            found = weights[values.hyper[:, 1] < place].sum()
            np.testing.assert_allclose(found, exact, rtol=0.1)
