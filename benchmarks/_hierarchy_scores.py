"""What a good approximation of a large posterior is, and the references that say so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks._common import Row

# A scalar of a reference counts if its chains agree this well.
MAX_RHAT, MIN_ESS = 1.01, 400
MEAN_BAR, FAR_MEAN, LOWEST_SD, HIGHEST_SD = 0.1, 0.25, 0.9, 1.1
SHARE = 0.99
# Nothing is judged tighter than this many Monte-Carlo errors of the reference.
ERRORS = 3.0
# Variables of at most so many scalars count as hyperparameters and fixed effects.
FEW = 3
# No verdict if a larger share of the scalars has a reference that cannot be used.
LEFT_OUT = 0.05
BAR = (
    f"{SHARE:.0%} of the scalars have means within {MEAN_BAR} reference standard deviations and "
    f"standard deviations within {LOWEST_SD} to {HIGHEST_SD} of the reference's, all means within "
    f"{FAR_MEAN}; hyperparameters and fixed effects (variables of at most {FEW} scalars, and "
    f"weights of regressions) all within {MEAN_BAR} and {LOWEST_SD} to {HIGHEST_SD}; nothing is "
    f"judged tighter than {ERRORS:g} Monte-Carlo errors of the reference"
)
SCORES = (
    *("worst mean error", "worst mean at", "lowest sd ratio", "highest sd ratio", "worst sd at"),
    *("share within", "few: worst mean error", "few: lowest sd ratio", "few: highest sd ratio"),
    *("judged", "left out", "is good"),
)
SEPARATOR = "|"
# What a file may hold of each variable; the first two are needed.
KINDS = ("mean", "sd", "ess", "rhat", "mcse_mean", "mcse_sd")


@dataclass(frozen=True)
class Known:
    """What is known of one variable; arrays of its shape.

    Attributes
    ----------
    mean, sd : ndarray
    mean_error, sd_error : ndarray
        Monte-Carlo errors, in units of ``sd``.
    is_usable : ndarray of bool
        Whether the chains agree.
    """

    mean: np.ndarray
    sd: np.ndarray
    mean_error: np.ndarray
    sd_error: np.ndarray
    is_usable: np.ndarray


type Reference = Mapping[str, Known]
type Moments = Mapping[str, tuple[np.ndarray, np.ndarray]]


def exact(moments: Moments, draws: float = np.inf) -> Reference:
    """A reference of exact moments, or of those of so many independent draws."""
    found = {}
    for name, (mean, sd) in moments.items():
        mean, sd = np.asarray(mean, dtype=float), np.asarray(sd, dtype=float)
        error = np.full(mean.shape, draws**-0.5)
        found[name] = Known(mean, sd, error, error / np.sqrt(2), np.ones(mean.shape, bool))
    return found


def load(path: Path) -> Reference:
    """Read a file of arrays ``NAME|mean``, ``NAME|sd`` and, optionally, ``NAME|ess``, ….

    Raises
    ------
    ValueError
        If it has no variable.
    """
    parts: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as file:
        for key in file.files:
            name, found, kind = key.rpartition(SEPARATOR)
            if found and kind in KINDS:
                parts.setdefault(name, {})[kind] = file[key]
    if not parts:
        raise ValueError(f"{path} holds no array NAME{SEPARATOR}mean")
    return {name: _known(part) for name, part in parts.items()}


def _known(part: Mapping[str, np.ndarray]) -> Known:
    mean, sd = part["mean"], part["sd"]
    ess = np.asarray(part.get("ess", np.full(mean.shape, np.inf)), dtype=float)
    rhat = np.asarray(part.get("rhat", np.ones(mean.shape)), dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_error = part["mcse_mean"] / sd if "mcse_mean" in part else ess**-0.5
        sd_error = part["mcse_sd"] / sd if "mcse_sd" in part else (2 * ess) ** -0.5
        is_usable = (rhat <= MAX_RHAT) & (ess >= MIN_ESS)
    return Known(mean, sd, mean_error, sd_error, is_usable)


def moments(draws: Mapping[str, np.ndarray]) -> Moments:
    """Means and standard deviations of draws (draw, ...)."""
    return {name: (x.mean(0), x.std(0, ddof=1)) for name, x in draws.items()}


def judge(found: Moments, reference: Reference, few: Sequence[str] = ()) -> Row:
    """Compare moments with a reference.

    Parameters
    ----------
    found : mapping of str to (mean, sd)
        Variables that the reference does not have do not count.
    reference : Reference
    few : sequence of str
        Variables that count as hyperparameters and fixed effects, whatever their size.

    Returns
    -------
    Row
        With the columns `SCORES`. ``is good`` is None where the reference cannot say: of a
        hyperparameter or fixed effect, or of more than a share of the scalars.

    Raises
    ------
    ValueError
        If no variable is in both.
    """
    names = [name for name in reference if name in found]
    if not names:
        raise ValueError(f"nothing to judge: {sorted(found)} found, {sorted(reference)} known")

    def joined(arrays: Callable[[str], np.ndarray]) -> np.ndarray:
        return np.concatenate([np.ravel(arrays(name)) for name in names])

    exact_mean, exact_sd = (joined(lambda n, k=k: getattr(reference[n], k)) for k in ("mean", "sd"))
    varies = exact_sd > 1e-12 * (np.abs(exact_mean) + 1)
    usable = joined(lambda n: reference[n].is_usable) & varies
    is_few = joined(lambda n: np.full(np.shape(reference[n].sd), _is_few(reference[n], n, few)))
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(joined(lambda n: found[n][0]) - exact_mean) / exact_sd
        ratio = joined(lambda n: found[n][1]) / exact_sd
    noise = ERRORS * joined(lambda n: reference[n].mean_error)
    sd_noise = ERRORS * joined(lambda n: reference[n].sd_error)
    near = (error <= np.maximum(MEAN_BAR, noise)) & (
        ((ratio >= LOWEST_SD) & (ratio <= HIGHEST_SD)) | (np.abs(ratio - 1) <= sd_noise)
    )
    if not usable.any():
        return dict.fromkeys(SCORES) | {"judged": 0, "left out": int(varies.sum())}
    is_good = (
        near[usable].mean() >= SHARE
        and (error <= np.maximum(FAR_MEAN, noise))[usable].all()
        and near[usable & is_few].all()
    )
    left_out = varies & ~usable
    cannot_say = (left_out & is_few).any() or left_out.sum() > LEFT_OUT * varies.sum()
    labels = _labels(reference, names)
    place = np.flatnonzero(usable)
    # What is not finite is the worst.
    mean_at = place[np.argmax(np.nan_to_num(error[usable], nan=np.inf))]
    off = np.abs(np.log(np.maximum(ratio[usable], 1e-300)))
    sd_at = place[np.argmax(np.nan_to_num(off, nan=np.inf))]
    return {
        "worst mean error": float(error[mean_at]),
        "worst mean at": labels[mean_at],
        "lowest sd ratio": float(ratio[usable].min()),
        "highest sd ratio": float(ratio[usable].max()),
        "worst sd at": labels[sd_at],
        "share within": float(near[usable].mean()),
        **_of_few(error[usable & is_few], ratio[usable & is_few]),
        "judged": int(usable.sum()),
        "left out": int(left_out.sum()),
        "is good": None if cannot_say else bool(is_good),
    }


def _is_few(known: Known, name: str, few: Sequence[str]) -> bool:
    return name in few or np.size(known.sd) <= FEW


def _of_few(error: np.ndarray, ratio: np.ndarray) -> Row:
    names = [name for name in SCORES if name.startswith("few: ")]
    if not len(error):
        return dict.fromkeys(names)
    return dict(zip(names, map(float, (error.max(), ratio.min(), ratio.max())), strict=True))


def _labels(reference: Reference, names: Sequence[str]) -> list[str]:
    return [
        f"{n}[{','.join(map(str, i))}]" if i else n
        for n in names
        for i in np.ndindex(np.shape(reference[n].mean))
    ]
