"""An approximation as the content of a file, and back."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
import pymc as pm
import pytensor

from pymc_flows.approximation.draws import FlowDraws
from pymc_flows.approximation.mixture import MixtureState
from pymc_flows.approximation.start import start_state
from pymc_flows.backends.rngs import decode_state, encode_state, set_state
from pymc_flows.errors import ArgumentError, StorageError
from pymc_flows.field.state import FieldState
from pymc_flows.flows import build_chain
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.io.files import Content
from pymc_flows.model.layout import fingerprint, layout
from pymc_flows.model.logp import density_of
from pymc_flows.model.structure import structure
from pymc_flows.model.terms import different_terms, probe

_log = logging.getLogger(__name__)

PACKAGES = ("pymc-flows", "pymc", "pytensor", "numpy", "numba", "jax", "jaxlib")
_MOST_SHOWN = 10
# Most parts of a mixture that are read from a file.
MAX_PARTS = 10_000


@cache
def versions() -> dict[str, str]:
    """Versions of the software that the bits of a fit depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def contents(approx: FlowDraws, hist: np.ndarray | None = None) -> Content:
    """The content of an approximation's file; ``hist`` replaces its own losses."""
    q = approx.q
    losses = np.asarray(approx.hist if hist is None else hist, dtype=float)
    roles = parts = None
    if isinstance(q, FieldState):
        roles = {"hyper": list(q.structure.hyper_names), "field": list(q.structure.field_names)}
    if isinstance(q, MixtureState):
        parts = [str(part.formula) for part in q.parts]
    fitted = approx._fitted_to
    density = approx.density if fitted is None else fitted.current
    record = {
        "versions": versions(),
        "floatX": pytensor.config.floatX,
        "model": fingerprint(approx.model, approx.density.slots),
        "log_density": probe(density, q.landmarks()),
        "ladder": None if approx.ladder is None else approx.ladder.record(),
        "restarts": None if approx.restarts is None else approx.restarts.record(),
        "structure": roles,
        "mixture": parts,
        "scale_cost_to_minibatch": approx.scale_cost_to_minibatch,
        "draws_rng": encode_state(approx._sample_rng.bit_generator.state),
        "seeds_rng": encode_state(approx.rng.get_state(legacy=False)),
    }
    return Content(str(approx.formula), {**q.arrays(), "hist": losses}, record)


def check_model(content: Content, model: pm.Model) -> None:
    """Raise `StorageError` unless a file belongs to a model and has the current ``floatX``."""
    dtype = pytensor.config.floatX
    if content.record.get("floatX") != dtype:
        raise StorageError(
            f"the file was written with floatX={content.record.get('floatX')!r}, "
            f"pytensor.config.floatX is {dtype!r}"
        )
    expected = fingerprint(model, layout(model))
    found = content.record.get("model")
    if found != expected:
        raise StorageError(
            "the file belongs to another model\n" + _shown(_differences(found, expected))
        )


def field_state(content: Content, model: pm.Model) -> FieldState:
    """Make the field given hyperparameters of a file, whose formula has a bar.

    Raises
    ------
    StorageError
        If it was made for another model, or the file is malformed.
    """
    check_model(content, model)
    try:
        record = content.record["structure"]
        found = structure(model, hyper=list(record["hyper"]), field=list(record["field"]))
        return FieldState.restored(
            density_of(model), found, Formula(content.formula), content.array
        )
    except (ArgumentError, KeyError, TypeError, ValueError) as error:
        raise StorageError(f"the file is malformed, or of another model: {error}") from error


def mixture_state(content: Content, model: pm.Model) -> MixtureState:
    """Make the mixture of a file.

    Raises
    ------
    StorageError
        If it was made for another model, or the file is malformed.
    """
    formulas = content.record["mixture"]
    if not isinstance(formulas, list) or not 0 < len(formulas) <= MAX_PARTS:
        raise StorageError(f"the parts of a mixture in the file are malformed: {formulas!r:.200}")
    density = density_of(model)
    names = [slot.name for slot in density.slots]
    parts = []
    for k, text in enumerate(formulas):
        prefix = f"part_{k}_"
        arrays = {
            name.removeprefix(prefix): array
            for name, array in content.arrays.items()
            if name.startswith(prefix)
        }
        part = Content(str(text), arrays, content.record)
        given = flow_arguments(part, model)
        state = start_state(
            given["flow"],
            density,
            names,
            jitter=0.0,
            start=given["start"],
            params=None,
            seed=np.random.SeedSequence(0),
        )
        state.load(part.array)
        parts.append(state)
    try:
        return MixtureState(parts, content.array("mixture_weights", (len(parts),)))
    except ArgumentError as error:
        raise StorageError(f"the mixture in the file is malformed: {error}") from error


def flow_arguments(content: Content, model: pm.Model) -> dict[str, Any]:
    """Return the arguments of `NormalizingFlow` and `NFVI` that make the flow of a file.

    Raises
    ------
    StorageError
        If the flow was made for another model.
    FormulaError
        If the formula has a word that is not registered.
    """
    check_model(content, model)
    dtype, slots = pytensor.config.floatX, layout(model)
    formula = Formula(content.formula)
    dim = slots[-1].slice.stop
    center = content.array("center", (dim,), dtype)
    scale = None
    if "scale" in content.arrays:
        square = (dim, dim) if content.arrays["scale"].ndim == 2 else (dim,)
        scale = content.array("scale", square, dtype)
    # Check all shapes before anything of these sizes is made.
    chain = build_chain(formula, dim)
    for i, (block, shapes) in enumerate(zip(chain.blocks, chain.param_shapes(), strict=True)):
        for name, shape in shapes.items():
            content.array(f"param_{i}_{block.layer.word}_{name}", shape, dtype)
    start = Frame(center, scale)
    return {"flow": formula, "model": model, "jitter": 0, "start": start, "random_seed": 0}


def _differences(found: Any, expected: Sequence[dict[str, Any]]) -> list[str]:
    """Say what differs between two fingerprints, the first of them from a file."""
    try:
        ours = {str(variable["name"]): variable for variable in expected}
        theirs = {str(variable["name"]): variable for variable in found}
        lines = [f"  {name!r}: only in the file" for name in theirs if name not in ours]
        lines += [f"  {name!r}: only in the model" for name in ours if name not in theirs]
        for name, variable in ours.items():
            other = theirs.get(name, variable)
            lines += [
                f"  {name!r}: {key} is {str(other[key])[:80]!r} in the file, "
                f"{str(variable[key])!r} in the model"
                for key in variable
                if other[key] != variable[key]
            ]
    except (AttributeError, KeyError, TypeError):
        return ["  the file does not say which"]
    return lines or ["  the same variables in another order: " + ", ".join(theirs)[:400]]


def _shown(lines: list[str]) -> str:
    if len(lines) > _MOST_SHOWN:
        lines[_MOST_SHOWN:] = [f"  and {len(lines) - _MOST_SHOWN} further differences"]
    return "\n".join(lines)


def check_log_density(approx: FlowDraws, content: Content) -> None:
    """Raise `StorageError` if the model of a restored approximation has other priors or data.

    Terms of minibatches are not compared, since each batch is different. Nothing is compared if the
    model could not be evaluated when the file was written, or cannot be now; the log says so.
    """
    found, expected = content.record.get("log_density"), probe(approx.density, approx.q.landmarks())
    if found is None or expected is None:
        when = "now" if expected is None else "when the file was written"
        _log.warning(
            "The log density of the model could not be evaluated %s, so it is unknown whether the "
            "file belongs to these data and priors.",
            when,
        )
        return
    try:
        lines = different_terms(found, expected)
    except (AttributeError, TypeError, ValueError) as error:
        raise StorageError(f"the file is malformed: {error!r}") from error
    if lines:
        raise StorageError(
            "the model has other data or priors than when the file was written\n"
            f"{_shown(lines)}\n"
            "Give the model that the file was written for, with its data (pm.set_data), or "
            "check_density=False if you mean another one."
        )


def restore(approx: FlowDraws, content: Content) -> None:
    """Set the parameters, losses and random states of an approximation to those of a file."""
    approx.q.load(content.array)
    approx.hist = content.array("hist", (None,))
    record = content.record
    try:
        approx.scale_cost_to_minibatch = record["scale_cost_to_minibatch"]
        draws, seeds = approx._sample_rng, approx.rng
        set_state(draws, decode_state(record["draws_rng"], draws.bit_generator.state))
        set_state(seeds, decode_state(record["seeds_rng"], seeds.get_state(legacy=False)))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StorageError(f"the file is malformed: {error!r}") from error
