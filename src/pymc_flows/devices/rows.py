"""The choice of the data that are shared out."""

from __future__ import annotations

import logging
from dataclasses import replace

import pymc as pm
from pytensor.compile.sharedvalue import SharedVariable

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.modes import NUMPY
from pymc_flows.devices.mesh import Devices
from pymc_flows.errors import ModelError
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.streams import stream_of

_log = logging.getLogger(__name__)


def shared_out(devices: Devices, density: ModelDensity) -> Devices:
    """Devices that know which data of a model to share out; the log says which.

    Rows are the first axis of observed variables. Other data of such a length are shared out along
    with them: `pymc.Data`, constant arrays, and whatever is computed from these alone.

    Raises
    ------
    ModelError
        If the model has no rows or sees batches of them, if rows cannot be divided evenly, or if
        the log density is not a prior plus a sum over rows, which several processes need.
    """
    if density.is_random or stream_of(density) is not None:
        raise ModelError(
            "steps see batches of the rows, or the log density is random\n"
            "Give devices= for a model of all rows."
        )
    observed = _row_counts(density.model)
    if not observed:
        raise ModelError(
            "no observed variable has rows that devices= could share out\nRows are the first axis "
            "of an observed variable of the model; leave devices= out."
        )
    if not devices.is_local:
        _check_separable(density, observed)
        shapes = [(slot.name, slot.shape) for slot in density.slots]
        devices.check_same({"rows of observed variables": observed, "free variables": shapes})
        density.has_all_rows = False
        _log.info(
            "%d processes, each with rows of its own: here %s.",
            devices.n_processes,
            _listed(observed),
        )
        return devices
    n = devices.n_parts
    name, most = max(observed.items(), key=lambda item: item[1])
    if most % n:
        possible = [k for k in range(2, n) if most % k == 0]
        others = f", or use {possible[-1]} devices" if possible else ""
        raise ModelError(
            f"the {most:,} rows of {name!r} cannot be divided evenly among {n} devices\n"
            f"Leave out {most % n} rows{others}."
        )
    even = {name: rows for name, rows in observed.items() if rows % n == 0}
    whole = {name: rows for name, rows in observed.items() if rows % n}
    data = {
        v.name: v.get_value(borrow=True).shape[0]
        for v in density.model.data_vars
        if isinstance(v, SharedVariable)
        and v.type.ndim
        and v.get_value(borrow=True).shape[0] in even.values()
    }
    _log.info(
        "Rows are shared out among %d devices: %s.%s",
        n,
        _listed(even | data),
        f" Whole on each: {_listed(whole)}." if whole else "",
    )
    return replace(devices, lengths=frozenset(even.values()))


def _row_counts(model: pm.Model) -> dict[str, int]:
    """Number of rows of each observed variable that has more than one."""
    rows = [rv for rv in model.observed_RVs if rv.type.ndim]
    lengths = [model.rvs_to_values[rv].shape[0] for rv in rows]
    if not rows:
        return {}
    found = map(int, function_of([], lengths, mode=NUMPY)())
    return {rv.name: n for rv, n in zip(rows, found, strict=True) if n > 1}


def _check_separable(density: ModelDensity, observed: dict[str, int]) -> None:
    """Refuse a model whose log density is not a prior plus a sum over rows."""
    model = density.model
    problems = [
        f"potential {x.name!r}, which may count once or row by row" for x in model.potentials
    ]
    for rv in model.observed_RVs:
        term = density.named_terms[rv.name]
        if rv.name not in observed or term.ndim == 0:
            problems.append(f"{rv.name!r}, which has no log density for each row")
    problems += [
        f"{slot.name!r}, which has as many entries as this process has rows"
        for slot in density.slots
        if slot.shape and slot.shape[0] in observed.values()
    ]
    if problems:
        raise ModelError(
            "devices of several processes need a log density that is a prior plus a sum over rows; "
            f"the model has {'; '.join(problems)}\nUse devices of one process that has all rows."
        )


def _listed(rows: dict[str, int]) -> str:
    return ", ".join(f"{name} ({n:,} rows)" for name, n in rows.items())
