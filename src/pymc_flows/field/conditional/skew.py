"""Skewed and bent noise for the separator of a field.

The log weight of a draw of the separator is a sum over its coordinates: with a hundred of them, a
small skewness of each makes the weights uneven. So draws of a Gaussian are skewed coordinate by
coordinate, by the sinh-arcsinh transformation (Jones & Pewsey, Sinh-arcsinh distributions,
Biometrika 96(4), 2009), and moved where the mean of one coordinate follows the square of another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.polynomial.hermite_e import hermegauss

_NODES, _WEIGHTS = hermegauss(60)
_ROOTS = np.sqrt(1 + _NODES**2)
# E √(1 + z²), and skewness per slant of small slants, 3 E (z² − 1) √(1 + z²), for normal z.
_MEAN = float(_WEIGHTS @ _ROOTS / _WEIGHTS.sum())
_SKEWNESS = float(3 * _WEIGHTS @ ((_NODES**2 - 1) * _ROOTS) / _WEIGHTS.sum())
# Noise farther out than this does not count, and the mean square of the other noise.
FAR = 2.0
_INSIDE = 1 - 2 * FAR * math.exp(-0.5 * FAR**2) / math.sqrt(2 * math.pi) / math.erf(
    FAR / math.sqrt(2)
)
# Fewest draws that are fitted to.
FEWEST = 64
# Largest slant, with a skewness of about 0.8: the lighter tail is too light with more.
MOST_SLANT = 0.5
# An estimate counts if it is so many standard errors from 0: few of thousands are by chance.
TELLING = 4.0


@dataclass(frozen=True, eq=False)
class Skew:
    """Map of standard normal noise z of the separator to x, one to one, with a simple density.

    xⱼ = cⱼ + (zⱼ + tⱼ (√(1 + zⱼ²) − E √(1 + z²))) / sⱼ + Σᵢ bᵢⱼ (xᵢ² − 1), where sⱼ makes the
    variance of the second term 1. Coordinates i that move others are moved by none.

    Attributes
    ----------
    shift : ndarray, shape (n,)
        c, for n elements of the separator.
    slant : ndarray, shape (n,)
        t, between −1 and 1: its sign is that of the skewness.
    pairs : ndarray of int, shape (k, 2)
        Coordinates i and j of the k coefficients b that are not 0.
    bend : ndarray, shape (k,)
        These b.
    """

    shift: np.ndarray
    slant: np.ndarray
    pairs: np.ndarray
    bend: np.ndarray

    @classmethod
    def fit(cls, noise: np.ndarray, scores: np.ndarray) -> Skew | None:
        """Fit to gradients of the log density at standard normal noise; None if nothing is told.

        A density φ(z) (1 + Σ aᵢⱼ (zᵢ² − 1) zⱼ), with (zⱼ³ / 3 − zⱼ) where i = j, has the score
        −zⱼ + Σ aᵢⱼ (zᵢ² − 1) in zⱼ, apart from terms that are odd in zᵢ. So scores are regressed on
        the squares of the noise, one by one, which are independent; far out, where scores may grow
        exponentially, they do not count.

        Parameters
        ----------
        noise, scores : ndarray, shape (draws, n)
            Scores with respect to the noise, in nats; rows that are not finite do not count.
        """
        finite = np.isfinite(scores).all(axis=1)
        noise, scores = noise[finite], scores[finite]
        if len(noise) < FEWEST:
            return None
        inside = np.abs(noise) < FAR
        mean = (scores + noise).mean(axis=0, where=inside)
        excess = np.where(inside, scores + noise - mean, 0.0)
        squares = np.where(inside, noise**2 - _INSIDE, 0.0)
        known = np.square(squares).T @ inside
        slope = squares.T @ excess / known
        own = np.diagonal(slope)
        error = excess.std(axis=0)
        slope = np.where(np.abs(slope) > TELLING * error / np.sqrt(known), slope, 0.0)
        shift = mean + own * (1 - _INSIDE)
        shift = np.where(np.abs(shift) > TELLING * error / math.sqrt(len(noise)), shift, 0.0)
        skewness = 2 * np.diagonal(slope)
        np.fill_diagonal(slope, 0.0)
        pairs = _in_layers(slope)
        if not (shift.any() or skewness.any() or len(pairs)):
            return None
        slant = np.clip(skewness / _SKEWNESS, -MOST_SLANT, MOST_SLANT)
        return cls(shift, slant, pairs, slope[pairs[:, 0], pairs[:, 1]])

    def times(self, factor: float) -> Skew:
        """The same map, nearer to none by a factor between 0 and 1."""
        return Skew(factor * self.shift, factor * self.slant, self.pairs, factor * self.bend)

    def __call__(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map noise (draws, n) to x (draws, n); also give −log |det dx/dz| (draws,), in nats."""
        root = np.sqrt(1 + z**2)
        scale = np.sqrt(1 + self.slant**2 * (2 - _MEAN**2))
        x = self.shift + (z + self.slant * (root - _MEAN)) / scale
        source, moved = self.pairs.T
        np.add.at(x.T, moved, (self.bend * (x[:, source] ** 2 - 1)).T)
        return x, -np.log((1 + self.slant * z / root) / scale).sum(axis=1)


def _in_layers(slope: np.ndarray) -> np.ndarray:
    """Choose pairs (k, 2) of coefficients (n, n), the largest first, so that none moves a mover."""
    i, j = slope.nonzero()
    order = np.argsort(-np.abs(slope[i, j]), kind="stable")
    moves = np.zeros(len(slope), bool)
    is_moved = moves.copy()
    found = []
    for source, moved in zip(i[order].tolist(), j[order].tolist(), strict=True):
        if not (is_moved[source] or moves[moved]):
            moves[source] = is_moved[moved] = True
            found.append((source, moved))
    return np.array(found, int).reshape(-1, 2)
