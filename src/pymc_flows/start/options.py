"""Bounds and tolerances of the search for a start."""

from __future__ import annotations

from dataclasses import dataclass

# With more numbers in the data, evaluations are expensive: the number of draws falls in proportion,
# to this share at least, and so many starting points in a row that lead to known modes are enough.
LARGE, FEWEST, FEW_IN_A_ROW = 1_000_000, 0.25, 2
# In more dimensions a frame does not mix coordinates: its scale is a vector.
MAX_DENSE = 300
# Least share of a Gaussian's draws with a density; importance weights drop the other draws.
LEAST_INSIDE = 0.2


@dataclass(frozen=True)
class SearchOptions:
    """Bounds and tolerances of `find_frame`; every loop of the search ends by one of them.

    Attributes
    ----------
    n_starts : int
        Starting points of the search for modes, the given one included.
    n_starts_in_many : int
        The same in more dimensions than `MAX_DENSE`, where each search is expensive and other
        modes are too many to list.
    spreads : tuple of float
        Every second further one is drawn around the given one, with these standard deviations in
        turn.
    multiples : tuple of float
        The others are drawn around the first mode, with these multiples of its standard deviations
        in turn.
    nudges : tuple of float
        How far the starting point is moved, at most, in turn, until there is a way from there: a
        gradient may not be finite where the log density is, as that of a generalised extreme value
        distribution at a shape of 0.
    newton_steps : int
        Most steps of Newton's method towards a mode, rejected ones included; each takes one
        gradient and one Hessian.
    line_searches : int
        The same for L-BFGS, which is used where Hessians are expensive; about one gradient each.
    same_in_a_row : int
        So many starting points in a row that lead to known modes end the search for others.
    max_climbs : int
        Searches for one mode, each in the coordinates that the last one found.
    max_curvatures, max_gradients : int
        No further starting point is tried after so many.
    elbo_draws : int
        Draws for the ELBOs by which candidates are compared.
    way_points : int
        One more than the points on the way to the first mode that are candidates, too.
    max_halvings : int
        Most times that the width of a Gaussian is halved.
    same_mode : float
        Modes nearer than this, in standard deviations of the better one (root mean square over the
        coordinates), are the same.
    min_share : float
        A mode with a smaller share of the mass, estimated by ELBOs, is left out.
    lost : float
        The search has failed if typical draws of the best Gaussian are this much lower, in nats per
        dimension, than the log density at the start.
    flat : float
        A direction with less curvature, in units of its diagonal, is flat.
    at_mode : float
        Distance from the mode, in standard deviations, at which it counts as found.
    gain : float
        A step that gains less than this share of the log density ends the way to a mode.
    full : float
        In more dimensions than `MAX_DENSE`, a Hessian with a larger share of non-zeros is
        expensive.
    """

    n_starts: int = 10
    n_starts_in_many: int = 4
    spreads: tuple[float, ...] = (1.0, 3.0)
    multiples: tuple[float, ...] = (10.0, 30.0, 3.0)
    nudges: tuple[float, ...] = (1e-3, 1e-2, 0.1, 1.0)
    newton_steps: int = 60
    line_searches: int = 300
    same_in_a_row: int = 5
    max_climbs: int = 4
    max_curvatures: int = 300
    max_gradients: int = 6_000
    elbo_draws: int = 200
    way_points: int = 5
    max_halvings: int = 12
    same_mode: float = 3.0
    min_share: float = 0.01
    lost: float = 10.0
    flat: float = 1e-8
    at_mode: float = 0.01
    gain: float = 1e-10
    full: float = 0.5


SEARCH = SearchOptions()


@dataclass(frozen=True)
class NaturalOptions:
    """Bounds of `climb_elbo`.

    Attributes
    ----------
    max_dim : int
        In more dimensions nothing is done.
    stages : tuple of (int, int, float)
        Draws per step, steps, and their rate. A stage ends with the mean of its second half.
    precise : float
        The first stage with less noise in its mean than this, in nats, is the last.
    elbo_draws : int
        Draws for the ELBOs by which stages are compared.
    max_halvings : int
        Most times that a step is halved whose precision would not be positive definite.
    """

    max_dim: int = 1_000
    stages: tuple[tuple[int, int, float], ...] = (
        (8, 10, 0.5),
        (16, 6, 0.5),
        (32, 6, 0.4),
        (64, 6, 0.35),
        (128, 4, 0.3),
    )
    precise: float = 0.005
    elbo_draws: int = 1_000
    max_halvings: int = 8


NATURAL = NaturalOptions()


def share_of_draws(n_data: int, *, fewest: float = FEWEST) -> float:
    """Share of the usual draws that are evaluated with so many numbers in the data."""
    return float(min(1.0, max(LARGE / max(n_data, 1), fewest)))
