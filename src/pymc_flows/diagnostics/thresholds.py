"""The limits that a report judges by."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """Limits of `report`.

    Attributes
    ----------
    min_draws : int
        Fewest draws: fewer say little about the tail of their weights.
    tolerance : float
        Largest error of a mean or a standard deviation, in standard deviations, that needs no
        correction, and that a reference may show.
    standard_errors : float
        By how many standard errors a reference may differ beyond that.
    invalid : float
        Largest share of a reference's draws without a density; more are of another model.
    beyond : tuple of float
        Distances beyond the largest log weight, in nats, at which shares of a reference's draws
        are compared with what the weights predict.
    share : float
        Largest share of the posterior that may be missing.
    share_errors : float
        By how many standard errors a share may exceed its prediction.
    rare : float
        The share of q above the largest of n weights is 1/n times an exponential variable; this is
        the 99 % quantile of that variable.
    named, shown : int
        Coordinates that a report keeps, and that its table shows.
    """

    min_draws: int = 100
    tolerance: float = 0.1
    standard_errors: float = 4.0
    invalid: float = 0.01
    beyond: tuple[float, ...] = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)
    share: float = 0.01
    share_errors: float = 3.0
    rare: float = -math.log(0.01)
    named: int = 1_000
    shown: int = 10


THRESHOLDS = Thresholds()
