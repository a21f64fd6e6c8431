"""Rounds of values, with a marginal whose cost, correction and support are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from pymc_flows.field.hyper.proposal import Proposal
from pymc_flows.field.hyper.rounds import Rounds
from pymc_flows.field.marginal import MarginalValues
from pymc_flows.field.options import FieldOptions

STANDARD = Proposal(np.zeros(2), np.eye(2), 8.0)
NARROW = Proposal(np.zeros(2), np.eye(2))
WIDE = Proposal(np.zeros(2), 12 * np.eye(2))


class Marginal:
    """A smooth log marginal; each value takes a tenth of a second."""

    is_gaussian = False
    conditional = SimpleNamespace(is_far=False)
    posterior = SimpleNamespace(n_hyper=2)

    def __init__(self, correction, *, is_possible=lambda g: g[:, 0] < np.inf):
        self.correction, self.is_possible = correction, is_possible
        self.progress = SimpleNamespace(effort=0.0, tell=lambda stage: None)
        self.evaluated: list[np.ndarray] = []

    def laplace(self, hyper):
        found = -0.5 * np.square(hyper).sum(axis=1) + 0.1 * np.sin(hyper[:, 0])
        return np.where(self.is_possible(hyper), found, -np.inf)

    def exact(self, hyper):
        return self.laplace(hyper) + self.correction(hyper)

    def evaluate(self, hyper, progress, stage, *, corrected=True):
        self.progress.effort += 0.1 * len(hyper)
        self.evaluated.append(hyper)
        laplace, none = self.laplace(hyper), np.zeros(len(hyper), bool)
        log_p = self.exact(hyper) if corrected else laplace
        return MarginalValues(hyper, log_p, laplace, np.zeros(len(hyper)), none | corrected, none)

    def choose_draws(self, hyper, reference, options, rng, progress):
        self.progress.effort += 50.0


def smooth(hyper):
    return 0.2 * hyper[:, 0] + 0.05 * hyper[:, 1] ** 2


def uneven(hyper):
    """No polynomial of second degree."""
    return 0.6 * np.sin(1.4 * hyper[:, 0]) + 0.5 * np.cos(1.3 * hyper[:, 1])


def started(correction, rng, **kwargs):
    marginal = Marginal(correction, **kwargs)
    options = FieldOptions(seconds_per_round=1e3)
    rounds = Rounds(marginal, None, options, marginal.progress)
    for _ in range(2):
        rounds.take(STANDARD, 128, rng)
    return marginal, rounds


@pytest.mark.parametrize("correction", [smooth, uneven])
def test_most_values_are_predicted_and_right(correction, rng):
    marginal, rounds = started(correction, rng)
    before = len(np.concatenate(marginal.evaluated))
    quality = rounds.take(NARROW, 2_000, rng)
    [(_, values)] = rounds.parts[-1:]
    assert quality.n_draws == 2_000
    assert values.is_emulated.mean() > 0.9
    assert len(np.concatenate(marginal.evaluated)) - before < 200
    off = rounds.log_p - marginal.exact(rounds.hyper)
    assert np.abs(off).max() < 0.2
    assert np.sqrt(np.exp(rounds.log_weights) @ np.square(off)) < 0.02
    assert rounds.error < 0.1


def test_the_choice_of_draws_is_no_cost_of_values(rng):
    _, rounds = started(smooth, rng)
    assert rounds.seconds_evaluated < 0.3


def test_values_that_would_take_little_are_evaluated(rng):
    _, rounds = started(smooth, rng)
    rounds.seconds_evaluated = 1e-4
    rounds.take(NARROW, 200, rng)
    assert not rounds.parts[-1][1].is_emulated.any()


def test_checks_come_from_all_regions(rng):
    """Draws are in the order of a Sobol' sequence, where every 32nd has the same beginning."""
    _, rounds = started(smooth, rng)
    spreads = []
    for _ in range(10):
        rounds.take(NARROW, 256, rng)
        is_checked = ~rounds.parts[-1][1].is_emulated
        spreads.append(rounds.parts[-1][1].hyper[is_checked].std(axis=0))
    assert (np.mean(spreads, axis=0) > 0.7).all()


def test_predictions_that_are_wrong_are_dropped(rng):
    """A step that none of the first values shows."""
    marginal, rounds = started(smooth, rng)
    n, laplace = len(rounds.parts), marginal.laplace
    marginal.laplace = lambda hyper: laplace(hyper) - 2 * (np.abs(hyper[:, 1]) < 0.6)
    rounds.take(NARROW, 512, rng)
    assert len(rounds.parts) == n + 1
    assert not rounds.can_emulate
    assert not rounds.parts[-1][1].is_emulated.any()


@pytest.mark.parametrize("seed", range(5))
def test_no_weight_is_where_there_is_no_density(seed):
    rng = np.random.default_rng(seed)
    _, rounds = started(smooth, rng, is_possible=lambda g: g[:, 0] < 1.2)
    rounds.take(NARROW, 2_000, rng)
    weights = np.exp(rounds.log_weights)
    assert weights[rounds.hyper[:, 0] > 1.2].sum() < 0.01


def test_predictions_from_full_values_survive_a_correction_that_is_not_smooth(rng):
    _, rounds = started(uneven, rng)
    rounds.take(NARROW, 2_000, rng)
    before = rounds.overall.ess
    rounds.take(WIDE, 200, rng)  # mostly too far out to be predicted
    assert rounds.overall.ess > 0.9 * before


def test_predictions_end_in_time(rng):
    marginal, rounds = started(smooth, rng)
    rounds.seconds_evaluated = 0.1
    begin = marginal.progress.effort
    rounds.take_all([(NARROW, 2_000), (WIDE, 1_000)], rng, 8.0)
    assert marginal.progress.effort - begin < 8.0 + 0.1 * 64
    sizes = [len(values.hyper) for _, values in rounds.parts[-2:]]
    assert sizes[0] == pytest.approx(2 * sizes[1], rel=0.1)


def test_a_copy_keeps_what_it_has(rng):
    _, rounds = started(smooth, rng)
    kept = rounds.copy()
    rounds.take(NARROW, 100, rng)
    assert len(rounds.hyper) == len(kept.hyper) + 100
    assert len(kept.log_weights) == len(kept.hyper)
