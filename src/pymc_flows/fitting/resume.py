"""`load` and `resume`: approximations and fits from the files that `save` and checkpoints are.

A file is netCDF, so ``xarray.open_dataset`` reads it. A SHA-256 of the data follows them, and is
compared first: it detects damage, not forgery. A file has a formula, numbers and a table of texts
only: nothing is unpickled or run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pymc as pm
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.approximation import (
    NormalizingFlow,
    check_log_density,
    field_state,
    flow_arguments,
    mixture_state,
    restore,
)
from pymc_flows.errors import ArgumentError
from pymc_flows.fitting.checkpoint import read_config, restore_fit
from pymc_flows.fitting.ladder import Ladder
from pymc_flows.fitting.nfvi import NFVI
from pymc_flows.fitting.restarts.record import Restarts
from pymc_flows.fitting.restarts.single import taken_up
from pymc_flows.formula import Formula
from pymc_flows.io.files import Content, read
from pymc_flows.support.arguments import model_or_context
from pymc_flows.support.compat import default_progress_theme
from pymc_flows.training.config import Callback
from pymc_flows.training.optimizers import Optimizer


def load(
    path: str | os.PathLike[str],
    model: pm.Model | None = None,
    *,
    check_density: bool = True,
) -> NormalizingFlow:
    """Read an approximation from a file.

    It draws and computes the very bits that the saved one would have.

    Parameters
    ----------
    path : str or path-like
        Written by ``approx.save``, ``inference.save`` or ``fit(checkpoint=)``.
    model : pymc.Model, optional
        The model that the approximation was made for; defaults to the model on the context stack.
        Names, shapes, dtypes and kinds of transforms of its free variables are compared.
    check_density : bool
        Whether to compare also the log density, at three points and by term, which shows other
        priors and other data (but not those of a minibatch). False allows a model that was changed
        on purpose, such as one with data for predictions.

    Returns
    -------
    NormalizingFlow

    Raises
    ------
    StorageError
        If the file is damaged, is not from `save`, or belongs to another model or data; the
        message says what differs.
    FormulaError
        If the formula has a flow that is not registered.
    ModuleNotFoundError
        If h5netcdf or h5py is missing (the extra ``files``).
    """
    content = read(path)
    approx = restored(content, model_or_context(model))
    if check_density:
        check_log_density(approx, content)
    return approx


def restored(content: Content, model: pm.Model) -> NormalizingFlow:
    """Make the approximation of the contents of a file.

    Raises
    ------
    StorageError
        If it belongs to a model with other variables.
    """
    if content.record.get("mixture") is not None:
        approx = NormalizingFlow.of(mixture_state(content, model), model, random_seed=0)
    elif Formula(content.formula).conditional is None:
        approx = NormalizingFlow(**flow_arguments(content, model))
    else:
        approx = NormalizingFlow.of(field_state(content, model), model, random_seed=0)
    restore(approx, content)
    approx.ladder = Ladder.restored(content.record.get("ladder"))
    approx.restarts = Restarts.restored(content.record.get("restarts"))
    return approx


def resume(
    path: str | os.PathLike[str],
    model: pm.Model | None = None,
    *,
    check_density: bool = True,
    callbacks: Sequence[Callback] | None = None,
    progressbar: bool = True,
    progressbar_theme: Any = default_progress_theme,
    obj_optimizer: Optimizer | None = None,
    more_obj_params: Sequence[SharedVariable] | None = None,
    more_updates: Mapping[SharedVariable, TensorVariable] | None = None,
    more_replacements: Mapping[Variable, Variable] | None = None,
    total_grad_norm_constraint: Any = None,
    compile_kwargs: Mapping[str, Any] | None = None,
    devices: Any = None,
) -> NFVI:
    """Go on with a fit from its checkpoint, and finish it.

    On the same machine, with the same versions, the result has the same bits as a fit that was not
    interrupted. (On numba, a process that compiles a fit for the first time may round differently
    from those that then find it in PyTensor's cache on disk; only the latter agree to the last
    bit.) Checkpoints are written as before. A fit that had finished is restored and takes no step;
    `NFVI.refine` continues it.

    Parameters
    ----------
    path : str or path-like
        Written by ``fit(checkpoint=)`` or ``inference.save``.
    model : pymc.Model, optional
        As for `load`.
    check_density : bool
        As for `load`. False lets the fit go on with other data or priors.
    callbacks : list of callable
        Those of the fit, called with all losses and the step's index; files do not hold their
        state.
    progressbar, progressbar_theme
        As in `NFVI.fit`.
    obj_optimizer : callable, optional
        Only if it was not one of PyMC's with plain numbers, which the file holds.
    more_obj_params, more_updates, more_replacements, compile_kwargs
        Those of the fit, if it had any: they are code, which no file holds.
    total_grad_norm_constraint : TensorVariable, optional
        Only if it was symbolic.
    devices
        As in `NFVI.fit`; they may differ from those of the fit, which changes only rounding.

    Returns
    -------
    NFVI
        With ``approx``, ``hist`` and all that `NFVI.refine` needs.

    Raises
    ------
    StorageError
        If the file cannot be used, or holds no fit.
    ArgumentError
        If an argument of the fit that the file does not hold is missing, or was not there.
    """
    content = read(path)
    model = model_or_context(model)
    compile_kwargs = dict(compile_kwargs or {})
    config, kl_weight, anchor = read_config(
        content,
        {
            "obj_optimizer": obj_optimizer,
            "more_obj_params": more_obj_params or None,
            "more_updates": more_updates or None,
            "more_replacements": more_replacements or None,
            "total_grad_norm_constraint": total_grad_norm_constraint,
            "compile_kwargs": compile_kwargs or None,
        },
        callbacks=list(callbacks or []),
        progressbar=progressbar,
        progressbar_theme=progressbar_theme,
        devices=devices,
    )
    backend = config.backend
    if "mode" in compile_kwargs:
        config = replace(config, backend=None)
    inference = taken_up(content, model, config, kl_weight, anchor)
    approx, state = inference.approx, inference.state
    if state.config.backend != backend:
        raise ArgumentError(
            f"the fit ran on {backend!r}, the mode in compile_kwargs is one of "
            f"{state.config.backend!r}"
        )
    restore_fit(approx, state, content)
    if check_density:  # after parameters of the model that the fit has learned are restored
        check_log_density(approx, content)
    state.keep_in(path)
    inference.go_on(progressbar_theme, show=progressbar).tell(stacklevel=2)
    return inference
