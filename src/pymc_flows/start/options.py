"""What bounds the search for a start."""

from __future__ import annotations

from dataclasses import dataclass

# With more numbers in the data, evaluations are dear: draws are fewer in proportion, but no fewer
# than this share, and so many starting points in a row that lead to known modes are enough.
LARGE, FEWEST, FEW_IN_A_ROW = 1_000_000, 0.25, 2
# Above this dimension a frame does not mix coordinates: its scale is a vector.
MAX_DENSE = 300
# Of a Gaussian's draws, at least this share must have a density; weights take out the others.
LEAST_INSIDE = 0.2


@dataclass(frozen=True)
class SearchOptions:
    """Bounds and tolerances of `find_frame`; every loop of the search ends by one of them.

    Attributes
    ----------
    n_starts : int
        Starting points of the search for modes, the given one included.
    spreads : tuple of float
        The further ones are drawn around the given one with these standard deviations in turn,
    multiples : tuple of float
        and as often around the first mode, with these multiples of its own.
    newton_steps : int
        Steps of Newton's method towards a mode, those that failed included; one gradient and one
        Hessian each.
    line_searches : int
        The same for L-BFGS, which is used where Hessians are dear; about one gradient each.
    same_in_a_row : int
        So many starting points in a row that lead to known modes end the search for others.
    max_climbs : int
        Searches of one mode, each in the coordinates that the last one found.
    max_curvatures, max_gradients : int
        No further starting point is tried after so many.
    elbo_draws : int
        Draws behind the ELBO by which candidates are compared.
    way_points : int
        Points on the way to the first mode that are candidates too, that many less one.
    max_halvings : int
        A Gaussian is narrowed by no more than this many powers of 2.
    same_mode : float
        Modes nearer than this, in standard deviations of the better one (the root of their mean
        square over the coordinates), are one.
    min_share : float
        A mode with a smaller share of the mass, judged by ELBOs, is left out.
    lost : float
        A Gaussian whose typical draws are this much lower than the log density at the start, in
        nats per dimension, is no place to begin.
    flat : float
        Of the curvature in units of its diagonal: below it, a direction is flat.
    at_mode : float
        Distance from the mode, in standard deviations, at which it is found.
    gain : float
        Share of the log density below which a step's gain ends the way to a mode.
    full : float
        Share of non-zeros of a Hessian above which, in more dimensions than `MAX_DENSE`, it is
        dear.
    """

    n_starts: int = 10
    spreads: tuple[float, ...] = (1.0, 3.0)
    multiples: tuple[float, ...] = (10.0, 30.0, 3.0)
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
        Draws of a step, steps, and their rate. At the end of a stage stands the mean of its second
        half.
    precise : float
        A stage after which this is left of the noise of the mean, in nats, is the last.
    elbo_draws : int
        Draws behind the ELBO by which stages are compared.
    max_halvings : int
        A step that would leave no positive precision is made shorter so often.
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
    """How many of the usual draws are evaluated with so many numbers in the data."""
    return float(min(1.0, max(LARGE / max(n_data, 1), fewest)))
