"""`install`: make flows reachable through PyMC's own names, on request."""

from __future__ import annotations

from functools import wraps
from typing import Any

import pymc as pm
from pymc.variational.opvi import Group

from pymc_flows.approximation import NormalizingFlow, NormalizingFlowGroup
from pymc_flows.errors import FormulaError
from pymc_flows.fitting import fit as fit_flow
from pymc_flows.formula import Formula
from pymc_flows.inference import NFVI

_pymc_fit = pm.fit
_pymc_group_for_short_name = Group.group_for_short_name


@wraps(_pymc_fit)
def _fit(n: int = 10_000, method: Any = "advi", model: Any = None, *args: Any, **kwargs: Any) -> Any:
    is_flow = isinstance(method, str) and method.strip().lower().partition("=")[0] == "nfvi"
    if not is_flow:
        return _pymc_fit(n, method, model, *args, **kwargs)
    names = ("random_seed", "start", "start_sigma", "inf_kwargs")
    return fit_flow(n, method=method, model=model, **dict(zip(names, args, strict=False)), **kwargs)


def _group_for_short_name(_: type[Group], name: str) -> type[Group]:
    try:
        return _pymc_group_for_short_name(name)
    except KeyError as unknown:
        try:
            Formula(name)
        except FormulaError as error:
            unknown.add_note(f"Nor is it a formula of pymc_flows: {error}")
            raise unknown from error
        return NormalizingFlowGroup


def install() -> None:
    """Make flows reachable through PyMC's names.

    Afterwards ``pm.NFVI``, ``pm.NormalizingFlow``, ``pm.fit(method='nfvi=planar*8')`` and PyMC's
    ``Group(vars, vfam='scale-hh*4-loc')`` work; everything else in PyMC is as before. Calling it
    again does nothing; `uninstall` undoes it.
    """
    pm.NFVI = NFVI
    pm.NormalizingFlow = NormalizingFlow
    pm.fit = _fit
    Group.group_for_short_name = classmethod(_group_for_short_name)


def uninstall() -> None:
    """Undo `install`; without one before, do nothing."""
    if pm.fit is not _fit:
        return
    del pm.NFVI, pm.NormalizingFlow
    pm.fit = _pymc_fit
    Group.group_for_short_name = _pymc_group_for_short_name
