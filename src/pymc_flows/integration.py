"""`install`: make flows reachable through PyMC's own names, on request."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, wraps
from typing import Any

import pymc as pm

from pymc_flows.approximation import NormalizingFlow, NormalizingFlowGroup
from pymc_flows.approximation._pymc import Approximation, Group
from pymc_flows.errors import FormulaError
from pymc_flows.fitting.entry import fit as fit_flow
from pymc_flows.fitting.nfvi import NFVI
from pymc_flows.formula import Formula

_ABSENT = object()
# What `install` replaced: (owner, name, value in the owner's own namespace or _ABSENT).
_replaced: list[tuple[Any, str, Any]] = []


def install() -> None:
    """Make flows reachable through PyMC's names.

    Afterwards ``pm.NFVI``, ``pm.NormalizingFlow``, ``pm.fit(method='nfvi=planar*8')`` and PyMC's
    ``Group(vars, vfam='scale-hh*4-loc')`` work. It also repairs ``Approximation([...])`` of
    several groups: in PyMC 6.4 fits of them fail, and draws of groups that are not in the model's
    order come under wrong names. Everything else in PyMC is as before. Calling it again does
    nothing; `uninstall` undoes it.
    """
    if _replaced:
        return
    _replace(pm, "NFVI", NFVI)
    _replace(pm, "NormalizingFlow", NormalizingFlow)
    _replace(pm, "fit", _fit_with_flows(pm.fit))
    by_name = Group.group_for_short_name
    _replace(Group, "group_for_short_name", classmethod(_group_with_flows(by_name)))
    if not hasattr(Approximation, "rng"):
        rng = cached_property(_rng_of_first_group)
        rng.__set_name__(Approximation, "rng")
        _replace(Approximation, "rng", rng)
    draws = vars(Approximation)["sample_dict_fn"]
    _replace(Approximation, "sample_dict_fn", property(_in_order_of_model(draws)))


def uninstall() -> None:
    """Undo `install`; does nothing if it was not called."""
    while _replaced:
        owner, name, value = _replaced.pop()
        if value is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, value)


def _replace(owner: Any, name: str, value: object) -> None:
    _replaced.append((owner, name, vars(owner).get(name, _ABSENT)))
    setattr(owner, name, value)


def _fit_with_flows(pymc_fit: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(pymc_fit)
    def fit(
        n: int = 10_000, method: Any = "advi", model: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        is_flow = isinstance(method, str) and method.partition("=")[0].strip().lower() == "nfvi"
        if not is_flow:
            return pymc_fit(n, method, model, *args, **kwargs)
        names = ("random_seed", "start", "start_sigma", "inf_kwargs")
        options = {**dict(zip(names, args, strict=False)), **kwargs}
        if options.pop("start_sigma", None) is not None:
            raise NotImplementedError("start_sigma is only available for method advi")
        return fit_flow(n, method=method, model=model, **options)

    return fit


def _group_with_flows(by_name: Callable[[str], type[Group]]) -> Callable[..., type[Group]]:
    @wraps(by_name)
    def group_for_short_name(_: type[Group], name: str) -> type[Group]:
        try:
            return by_name(name)
        except KeyError as unknown:
            try:
                Formula(name)
            except FormulaError as error:
                unknown.add_note(f"Nor is it a formula of pymc_flows: {error}")
                raise unknown from error
            return NormalizingFlowGroup

    return group_for_short_name


def _rng_of_first_group(approx: Approximation) -> Any:
    """The generator that seeds a fit: PyMC 6.4 expects it here, but only groups have one."""
    return approx.groups[0].rng


def _in_order_of_model(draws: Any) -> Callable[[Approximation], Callable[..., dict[str, Any]]]:
    """Return draws in the model's order, because PyMC assigns names by position."""

    def sample_dict_fn(approx: Approximation) -> Callable[..., dict[str, Any]]:
        draw = draws.__get__(approx)

        def ordered(*args: Any, **kwargs: Any) -> dict[str, Any]:
            values = draw(*args, **kwargs)
            return {v.name: values[v.name] for v in approx.model.value_vars}

        return ordered

    return sample_dict_fn
