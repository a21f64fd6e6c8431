"""Log density of a PyMC model over flat unconstrained vectors, for many draws at once.

The graph of one draw is prepared once (checks per draw, large data as function inputs). It is
vectorised over draws where that is possible, and else scanned over them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.graphs import (
    Pin,
    fix_lengths,
    fold_sizes,
    lift_constants,
    switch_parameter_checks,
)
from pymc_flows.backends.jax import has_jax
from pymc_flows.backends.modes import no_compiler
from pymc_flows.backends.ops import random_inputs
from pymc_flows.backends.products import join_products
from pymc_flows.backends.simplify import simplify
from pymc_flows.backends.stable import stabilize
from pymc_flows.errors import ModelError
from pymc_flows.model.batching import (
    Batch,
    in_micro_batches,
    loop_over_draws,
    replaced,
    total_of,
    vectorized,
    weighted_gradient,
)
from pymc_flows.model.layout import (
    Slot,
    Start,
    are_same,
    check_finite,
    fixed_lengths,
    initial_point,
    layout,
    names_without_value,
    start_point,
    tensor_values,
)
from pymc_flows.model.replacements import Replacements, check_replacements, named_terms, parts_of
from pymc_flows.model.tiles import RowSum, row_sums, tiled_value_and_grad

__all__ = ["ModelDensity", "Replacements", "Slot", "density_of"]


class ModelDensity:
    """The log density of a model as a function of flat unconstrained vectors.

    Parameters
    ----------
    model : pymc.Model
        Model with at least one free variable, all of them continuous.

    Attributes
    ----------
    slots : tuple of Slot
        Layout of the flat vector, in the order of ``model.free_RVs``.
    values : tuple of TensorVariable
        The model's value variables, or tensors of known shape in their place.
    dim : int
        Length of the flat vector.
    kept : dict
        Results of other modules, kept as long as the density. They must check whether data have
        been replaced since.

    Raises
    ------
    ModelError
        If the model has no free variable or a discrete one.
    """

    has_all_rows = True  # False once a fit has shared the rows with other processes

    def __init__(self, model: pm.Model):
        self.model = model
        self.slots = layout(model)
        self.values = tensor_values(model, [slot.shape for slot in self.slots])
        self.dim = self.slots[-1].slice.stop
        self._replacements: Replacements = None
        self._replaced: ModelDensity | None = None
        self._parts = parts_of(model)
        self._pins: list[Pin] = []
        self.kept: dict[Any, Any] = {}

    def is_current(self) -> bool:
        """Whether the model still has the same variables, of the same shapes."""
        return (
            self.has_its_lengths()
            and are_same(parts_of(self.model), self._parts)
            and (self._is_static or layout(self.model) == self.slots)
        )

    def has_its_lengths(self) -> bool:
        """Whether the data still give the masks and lengths that are part of the graph."""
        return all(pin.holds() for pin in self._pins)

    @property
    def _is_static(self) -> bool:
        """Whether neither data nor coords can change the shape of a free variable."""
        return all(None not in value.type.shape for value in self.model.value_vars)

    # ------------------------------------------------------------------ flat vector <-> variables

    def unpack(self, z: TensorVariable) -> dict[Variable, TensorVariable]:
        """Split flat vectors z (..., dim) into `values`, each (..., *shape of the variable)."""
        batch = tuple(z.shape[i] if n is None else n for i, n in enumerate(z.type.shape[:-1]))
        return {
            value: z[..., slot.slice].reshape((*batch, *slot.shape)).astype(slot.dtype)
            for value, slot in zip(self.values, self.slots, strict=True)
        }

    def split(self, z: np.ndarray) -> list[np.ndarray]:
        """Values of `values`, in order, at a flat point (dim,)."""
        return [z[slot.slice].reshape(slot.shape).astype(slot.dtype) for slot in self.slots]

    def pack(self, point: Mapping[str, np.ndarray]) -> np.ndarray:
        """Join values by name, shape of the variable each, into one flat vector (dim,)."""
        dtype = pytensor.config.floatX
        return np.concatenate([np.ravel(point[slot.name]).astype(dtype) for slot in self.slots])

    def start(self, start: Start | None = None, *, finite: bool = True) -> np.ndarray:
        """Return the flat start point: the model's initial point with ``start`` laid over it.

        Parameters
        ----------
        start : mapping, optional
            Values by variable or its name; a transformed name (``"sigma_log__"``) means a value in
            the unconstrained space, as everywhere in PyMC. Values are broadcast to the variable.
            ``"prior"`` and ``"support_point"`` stand for values, as in `pymc.sample`.
        finite : bool
            Whether to refuse also values of the model that are not finite.

        Raises
        ------
        ArgumentError
            If ``start`` is not a mapping.
        ModelError
            If a name is unknown, a value is not numeric, a shape does not fit, or a value lies
            outside the support.
        """
        point = start_point(self.model, self.slots, start)
        if finite:
            check_finite({slot.name: point[slot.name] for slot in self.slots})
        return self.pack(point)

    def not_named_in(self, start: Start | None) -> np.ndarray:
        """Mask (dim,) of the coordinates of `start` that come from the model."""
        free = names_without_value(self.model, start)
        mask = np.zeros(self.dim, dtype=bool)
        for slot in self.slots:
            mask[slot.slice] = slot.name in free
        return mask

    def check_shapes(self) -> None:
        """Raise `ModelError` if a free variable no longer has the shape the flow was built for."""
        if self._is_static:
            return
        current = initial_point(self.model)
        for slot in self.slots:
            if np.shape(current[slot.name]) != slot.shape:
                raise ModelError(
                    f"the shape of free variable {slot.name!r} changed since the approximation "
                    f"was made\nexpected {slot.shape}, got {np.shape(current[slot.name])}\n"
                    "Data may change their length, free variables may not: make a new "
                    "approximation."
                )

    def check_lengths(self) -> None:
        """Raise `ModelError` if data have changed that decide on lengths or masks of the graph."""
        pins = [*self._pins, *(self._replaced._pins if self._replaced is not None else ())]
        if changed := sorted({str(pin.variable.name) for pin in pins if not pin.holds()}):
            raise ModelError(
                f"the data {', '.join(changed)} have changed since the loop was compiled\nThey are "
                "masks or decide on lengths, which are compiled into the loop: call fit() again "
                "instead of refine(); it starts where the flow is now."
            )

    # -------------------------------------------------------------------------- log density graphs

    @cached_property
    def named_terms(self) -> dict[str, TensorVariable]:
        """Log density of each random variable and potential, as PyMC gives them, in nats.

        Graphs in ``values``, for one draw, not summed: free variables (with the Jacobians of their
        transforms), observed ones, potentials.
        """
        with no_compiler():
            return named_terms(self.model, self.values, self._replacements)

    @cached_property
    def terms(self) -> list[TensorVariable]:
        """Log prior (with the transforms' Jacobians) and log likelihood (with potentials), scalars.

        Graphs in ``values``, for one draw, in nats.
        """
        model, n_free = self.model, len(self.model.free_RVs)
        sums = [term.sum() for term in self.named_terms.values()]
        with no_compiler():
            totals = [total_of(sums[:n_free]), total_of(sums[n_free:])]
            outputs = fold_sizes(replaced(totals, fixed_lengths(model)))
            if has_jax():
                outputs, self._pins = fix_lengths(outputs, self.values)
            outputs = switch_parameter_checks(outputs, self.values, keep=model.check_bounds)
            return join_products(lift_constants(stabilize(simplify(outputs))), self.values)

    @cached_property
    def is_random(self) -> bool:
        """Whether the log density draws random numbers itself: for a minibatch or a simulator.

        Each evaluation is another estimate of it then, so that draws have no importance weights.
        """
        return bool(random_inputs(self.terms))

    def replaced(self, replacements: Replacements) -> ModelDensity:
        """Return the density with variables of the model replaced; itself if none are.

        Parameters
        ----------
        replacements : mapping of Variable to Variable, optional
            Variables that the model is built from, and what stands in their place.

        Raises
        ------
        ArgumentError
            If a variable cannot be replaced by the other, or the log density does not depend on
            it.
        """
        checked = check_replacements(self.model, replacements)
        if not checked:
            return self
        # Only the last one is kept: a fit uses the same replacements throughout.
        known = self._replaced
        if known is None or known._replacements != checked or not known.has_its_lengths():
            known = self._replaced = self.copied()
            known._replacements = checked
        return known

    def copied(self) -> ModelDensity:
        """Copy the density without anything that has been made of it, for another log density."""
        other = copy.copy(self)
        for name in ("named_terms", "terms", "is_random"):
            other.__dict__.pop(name, None)
        other._replaced, other._pins, other.kept = None, [], {}
        return other

    def single(self, z: TensorVariable, replacements: Replacements = None) -> list[TensorVariable]:
        """Log prior and log likelihood at one point z (dim,)."""
        return self._at(z, self.replaced(replacements).terms)

    def batched(self, z: TensorVariable, replacements: Replacements = None) -> list[TensorVariable]:
        """Log prior and log likelihood at points z (draws, dim), vectorised: shapes (draws,)."""
        return self._at_all(z, self.replaced(replacements).terms)

    def vectorized(self, z: TensorVariable) -> Batch | str:
        """`batched`, with a reason not to use it if there is one; or why it is impossible."""
        return self._vectorized(z, self.terms)

    def looped(self, z: TensorVariable, replacements: Replacements = None) -> list[TensorVariable]:
        """Log prior and log likelihood at points z (draws, dim) by a scan over draws."""
        terms = self.replaced(replacements).terms
        return loop_over_draws(lambda inner, row: self._at(row, inner), terms, self.values, [z])

    def value_and_grad(
        self,
        z: TensorVariable,
        *,
        weights: Sequence[TensorVariable | float],
        micro_batch: int | None,
        extra: Sequence[Variable] = (),
        replacements: Replacements = None,
        tiled: bool = False,
    ) -> tuple[list[TensorVariable], TensorVariable, list[TensorVariable]]:
        """Values and gradient of weights[0]·log prior + weights[1]·log likelihood, in nats.

        Inside a scan over draws or micro-batches, the gradient is taken step by step: nothing is
        differentiated through the scan.

        Parameters
        ----------
        z : TensorVariable, shape (draws, dim)
        weights : two scalars
        micro_batch : int or None
            Draws evaluated at once; None loops over single draws with the unbatched graph.
        extra : sequence of Variable
            Further inputs of the log density to differentiate with respect to.
        replacements : mapping, optional
            Applied to the log density first.
        tiled : bool
            Whether to take the sums of `rows_in_tiles` tile by tile; ignored with ``extra``.

        Returns
        -------
        values : [log prior, log likelihood], shape (draws,) each
        gradient : shape (draws, dim)
        extra_grads : gradients of the weighted sum over all draws, shapes of ``extra``
        """
        n_draws = z.type.shape[0]
        if tiled and not extra and (sums := self.rows_in_tiles(n_draws, replacements)):
            terms = self.replaced(replacements).terms
            return *tiled_value_and_grad(terms, self.unpack, z, weights, sums), []
        if n_draws == 1 or (micro_batch or 0) >= n_draws:
            if n_draws == 1:
                values = [pt.atleast_1d(v) for v in self.single(z[0], replacements)]
            else:
                values = self.batched(z, replacements)
            gradient, *extra_grads = weighted_gradient(values, weights, [z, *extra])
            return values, gradient, extra_grads

        def one(
            terms: list[TensorVariable], rows: TensorVariable, *counts: TensorVariable
        ) -> list[TensorVariable]:
            values = (self._at if micro_batch is None else self._at_all)(rows, terms)
            counted = values
            if counts:
                counted = [pt.switch(counts[0], v, pt.zeros_like(v)) for v in values]
            return [*values, *weighted_gradient(counted, weights, [rows, *extra])]

        prior, data, gradient, *extra_grads = loop_over_draws(
            one,
            self.replaced(replacements).terms,
            [*self.values, *extra],
            in_micro_batches(z, n_draws, micro_batch),
            outer=[w for w in weights if isinstance(w, Variable)],
        )
        return (
            [prior.reshape((-1,))[:n_draws], data.reshape((-1,))[:n_draws]],
            gradient.reshape((-1, self.dim))[:n_draws],
            [g.sum(axis=0) for g in extra_grads],
        )

    def rows_in_tiles(self, n_draws: int, replacements: Replacements = None) -> list[RowSum]:
        """Sums over rows that are worth a loop over tiles, for so many draws at once."""
        found = row_sums(self.replaced(replacements).terms, self.values, n_draws)
        pinned = {pin.variable for pin in self._pins}  # each fit asks more than once
        self._pins += [pin for x in found for pin in x.pins if pin.variable not in pinned]
        return found

    def _at(self, row: TensorVariable, terms: list[TensorVariable]) -> list[TensorVariable]:
        return graph_replace(terms, self.unpack(row), strict=False)

    def _at_all(self, rows: TensorVariable, terms: list[TensorVariable]) -> list[TensorVariable]:
        found = self._vectorized(rows, terms)
        if isinstance(found, str):
            raise ModelError(f"the log density must be evaluated draw by draw: {found}")
        return found.outputs

    def _vectorized(self, rows: TensorVariable, terms: list[TensorVariable]) -> Batch | str:
        # `vectorized` copies its graph. With ``rows`` in it, it would copy what these are computed
        # from, and the result would not depend on the ``rows`` of the caller.
        points = rows.type()
        if isinstance(found := vectorized(terms, self.unpack(points), "the log density"), str):
            return found
        outputs = graph_replace(found.outputs, {points: rows}, strict=False)
        values = [pt.full((rows.shape[0],), x) if x.ndim == 0 else x for x in outputs]
        return Batch(values, found.reason)


# By id of the model, which its density keeps alive.
_DENSITIES: WeakValueDictionary[int, ModelDensity] = WeakValueDictionary()


def density_of(model: pm.Model) -> ModelDensity:
    """Return the density of a model: the same one, while it is in use.

    What has been found out about it and compiled for it is used again; a model with a Scan takes
    seconds. A model that has got other variables since has another density.

    Raises
    ------
    ModelError
        If the model has no free variable or a discrete one.
    """
    found = _DENSITIES.get(id(model))
    if found is None or not found.is_current():
        found = _DENSITIES[id(model)] = ModelDensity(model)
    return found
