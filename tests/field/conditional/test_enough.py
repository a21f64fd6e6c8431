import numpy as np
import pytest

from posteriors import Counts
from pymc_flows.field.conditional.enough import (
    MIN_DRAWS,
    MIN_INNER,
    MIN_OUTER,
    MIN_WIDE,
    enough,
)
from pymc_flows.field.conditional.mapping import ConditionalField, Surface
from pymc_flows.field.conditional.newton import FieldModes
from pymc_flows.field.conditional.noise import NormalNoise, quadrature
from pymc_flows.field.conditional.tails import spreads
from pymc_flows.field.conditional.weights import weigh_groups
from pymc_flows.field.factors import factoring

ALLOWED = 0.05**2


@pytest.mark.parametrize(
    ("level", "difference", "cheap", "most", "expected"),
    [
        (0.05, 0.05, 1e9, 1e9, 64),
        (0.1, 0.05, 1e9, 1e9, 256),  # four times as many halve an error
        (0.1, 0.05, 100, 1e9, 64),  # unless they are not cheap
        (0.1, 0.1, 0, 1e9, 256),  # differences matter more
        (0.1, 0.1, 0, 150, 128),
        (0.1, 0.1, 0, 10, 64),  # there are 64 now
        (9.0, 9.0, 1e9, 1e9, 256),
        (1e-5, 1e-5, 1e9, 1e9, MIN_DRAWS),
        (np.nan, np.nan, 1e9, 1e9, 256),
    ],
)
def test_draws_without_a_separator(level, difference, cheap, most, expected):
    levels, differences = [(level**2, level**2)], [(difference**2, difference**2)]
    found = enough(levels, differences, (1, 64), ALLOWED, cheap, most)
    assert found == (1, expected)


@pytest.mark.parametrize(
    ("within", "total", "cheap", "expected"),
    [
        (8 * ALLOWED, ALLOWED, 1e9, (8, 16)),
        # Fewer draws in a block make it noisier: 8 + 6 instead of 8 times the variance allowed.
        (2 * ALLOWED, ALLOWED, 1e9, (16, 4)),
        (4 * ALLOWED, ALLOWED / 2, 1e9, (8, 8)),
        (np.nan, ALLOWED, 1e9, (32, 16)),
        (8 * ALLOWED, 4 * ALLOWED, 1e9, (32, 16)),
        (0.0, 0.0, 1e9, (MIN_OUTER, MIN_INNER)),
        (8 * ALLOWED, 4 * ALLOWED, 256, (16, 16)),
    ],
)
def test_blocks_and_draws_in_each(within, total, cheap, expected):
    noise = [(within, total)]
    assert enough(noise, [(0.0, 0.0)], (8, 16), ALLOWED, cheap, 1e9) == expected


def test_wide_tails_need_draws_in_each_block():
    none = [(0.0, 0.0)]
    assert enough(none, none, (8, 16), ALLOWED, 1e9, 1e9, wide=True) == (MIN_OUTER, MIN_WIDE)
    assert (spreads(MIN_WIDE) > 1).any()


def test_no_values_take_the_most_draws():
    assert enough([], [], (1, 16), ALLOWED, 1e9, 1e9) == (1, 64)


def test_variances_are_those_of_many_repetitions(rng):
    """Of the log marginal, and of its differences between two values of the hyperparameters."""
    target = Counts(np.repeat([0, 1, 3], [8, 4, 4]))
    posterior = target.posterior()
    modes = FieldModes(posterior, factoring(posterior.pattern, posterior.groups))
    surface = Surface(posterior.start[posterior.hyper], posterior.start[posterior.field])
    conditional = ConditionalField(modes, surface, quadrature(posterior.groups, 8, rng))
    gaussians = conditional.at(np.array([(0.2, 0.0), (0.0, 0.3)]))
    wide = np.ones(16, bool)
    levels, told = [], []
    for _ in range(200):
        noise = NormalNoise.make(posterior.groups, 32, rng)
        # Without the order of the sequence, the draws are independent, as the variances take them.
        white = rng.random(noise.points.shape)
        noise = NormalNoise(white, noise.dimension, noise.shift, noise.seed)
        first, second = (weigh_groups(posterior, g, noise, wide=wide) for g in gaussians)
        levels.append((first.log_marginal, second.log_marginal))
        told.append((second.variances()[1], second.variances(first)[1]))
    level, difference = np.mean(told, axis=0)
    found = np.array(levels)
    assert level == pytest.approx(found[:, 1].var(), rel=0.35)
    assert difference == pytest.approx(np.diff(found, axis=1).var(), rel=0.35)
    assert difference < 0.5 * level
