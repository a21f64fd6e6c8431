"""What users rely on: names, first parameters, docstrings, and an import that costs little."""

import inspect
import json
import re
import subprocess
import sys
import types

import pytest

import pymc_flows as pmf

NAMES = {
    *("FLOWS", "FlowError", "Formula", "FormulaError", "NFVI", "NormalizingFlow", "Report"),
    *("Rows", "Structure"),
    *(
        "Anneal",
        "Frame",
        "Plateau",
        "calibrate",
        "callbacks",
        "find_frame",
        "fit",
        "fit_draws",
        "fit_many",
        "flows",
        "install",
        "load",
        "neutra",
        "plots",
        "register_flow",
        "report",
        "resume",
        "sample",
        "structure",
        "targets",
        "uninstall",
    ),
}

# Names of parameters in order; "*" separates those that have to be named.
SIGNATURES = {
    "NFVI": "flow, *, model, jitter, start, params, random_seed",
    "NormalizingFlow": "flow, *, model, jitter, start, params, random_seed",
    "Formula": "text",
    "FormulaError": "message, source, start, end, hint",
    "fit": "n, *, formula, method, model, random_seed, start, inf_kwargs, hyper, field, "
    "seconds, quality, restarts, combine, batched, race, cores, executor, mp_ctx, blas_cores, "
    "**kwargs",
    "structure": "model, *, hyper, field, start",
    "fit_draws": "draws, formula, model, *, n, batch, held_out, obj_optimizer, backend, "
    "random_seed, progressbar",
    "fit_many": "builder, data_sets, n, *, draws, correct, cores, executor, mp_ctx, blas_cores, "
    "random_seed, progressbar, **kwargs",
    "calibrate": "model, n, *, steps, draws, correct, cores, executor, mp_ctx, blas_cores, "
    "random_seed, progressbar, **kwargs",
    "Rows.parquet": "path, columns, *, batch_size, pool_rows",
    "Rows.arrow": "table, columns, *, batch_size, pool_rows",
    "Rows.arrays": "arrays, *, batch_size, pool_rows",
    "find_frame": "model, *, start, dense, random_seed",
    "install": "",
    "load": "path, model, *, check_density",
    "resume": "path, model, *, check_density, callbacks, progressbar, progressbar_theme, "
    "obj_optimizer, more_obj_params, more_updates, more_replacements, total_grad_norm_constraint, "
    "compile_kwargs, devices",
    "uninstall": "",
    "Anneal": "share, start, curve",
    "Plateau": "tolerance, window, decay",
    "register_flow": "cls",
    "neutra": "approx, *, model, backend",
    "sample": "approx, draws, *, tune, chains, method, sampler, target_accept, model, "
    "random_seed, progressbar, **kwargs",
    "report": "approx, n, *, reference, random_seed",
    "NormalizingFlow.sample": "self, draws, *, correct, random_seed, "
    "return_inferencedata, **kwargs",
    "NormalizingFlow.sample_and_log_prob": "self, n, *, random_seed",
    "NormalizingFlow.log_prob": "self, points, *, space",
    "NormalizingFlow.forward": "self, z0",
    "NormalizingFlow.inverse": "self, points",
    "NFVI.fit": "self, n, score, callbacks, progressbar, progressbar_theme, *, backend, "
    "include_transformed, random_seed, checkpoint, every, obj_n_mc, obj_optimizer, "
    "schedule, stop, anneal, gradient, more_obj_params, more_updates, more_replacements, "
    "total_grad_norm_constraint, compile_kwargs, devices, fn_kwargs, tf_n_mc, test_optimizer, "
    "more_tf_params",
    "NormalizingFlow.save": "self, path",
    "NFVI.save": "self, path",
    "NFVI.refine": "self, n, progressbar, progressbar_theme, *, learning_rate",
}
DEFAULTS = {
    "NFVI": {"flow": "scale-loc", "jitter": 0.01},
    "NormalizingFlow": {"flow": "scale-loc", "jitter": 0.01},
    "NFVI.fit": {"n": 10_000, "obj_n_mc": 64, "backend": None, "progressbar": True},
    "NormalizingFlow.sample": {"draws": 500, "correct": None, "return_inferencedata": True},
}
MODULES = {"callbacks", "flows", "plots", "targets"}


def public(name):
    thing = pmf
    for part in name.split("."):
        thing = getattr(thing, part)
    return thing


def listed(signature):
    """Names of parameters, with a "*" before those that have to be named."""
    names, kinds = [], inspect.Parameter
    for parameter in signature.parameters.values():
        if parameter.kind is kinds.KEYWORD_ONLY and "*" not in names:
            names.append("*")
        names.append("**" * (parameter.kind is kinds.VAR_KEYWORD) + parameter.name)
    return ", ".join(names)


def test_names():
    assert set(pmf.__all__) == NAMES
    assert len(pmf.__all__) == len(NAMES)
    assert all(hasattr(pmf, name) for name in NAMES)
    assert {name for name in NAMES if isinstance(getattr(pmf, name), types.ModuleType)} == MODULES
    assert re.fullmatch(r"\d+\.\d+\.\d+", pmf.__version__)


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_signatures(name):
    signature = inspect.signature(public(name))
    assert listed(signature) == SIGNATURES[name]
    for parameter, default in DEFAULTS.get(name, {}).items():
        assert signature.parameters[parameter].default == default


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_list_their_names(module):
    names = public(module).__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(public(module), name) for name in names)


def test_every_plot_takes_its_subject_first_and_axes_by_name():
    first = {
        name: list(inspect.signature(public(f"plots.{name}")).parameters)[:2]
        for name in pmf.plots.__all__
    }
    assert first == {
        "approximation_density": ["approx", "ax"],
        "calibration": ["found", "figure"],
        "density_contour": ["target", "ax"],
        "draws": ["samples", "ax"],
        "history": ["hist", "ax"],
        "joint_kde": ["samples", "figure"],
        "ladder": ["ladder", "figure"],
        "layers": ["approx", "figure"],
        "layers_animation": ["approx", "path"],
        "log_weights": ["samples", "ax"],
        "pairs": ["samples", "figure"],
        "pareto_tail": ["samples", "ax"],
        "structure": ["structure", "ax"],
        "traces": ["tracker", "figure"],
    }


# ------------------------------------------------------------------------------------- docstrings


def documented():
    """Name and object of every public function, class and main method."""
    yield from SIGNATURES
    for module in ("plots", "targets", "flows"):
        for name in getattr(pmf, module).__all__:
            if inspect.isfunction(public(f"{module}.{name}")):
                yield f"{module}.{name}"
    yield "callbacks.Tracker"


def sections(doc):
    """The text below each numpydoc heading."""
    parts = re.split(r"\n(\w[\w ]*)\n-{3,}\n", doc)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", sorted(documented()))
def test_docstrings_have_their_sections(name):
    thing = public(name)
    doc = inspect.getdoc(thing)
    assert doc, name
    found = sections("\n" + doc)
    parameters = [p for p in inspect.signature(thing).parameters.values() if p.name != "self"]
    entries = re.findall(r"^([\w*, ]+?)(?: ?:.*)?$", found.get("Parameters", ""), re.MULTILINE)
    described = {entry.strip("* ") for line in entries for entry in line.split(",")}
    missing = {p.name for p in parameters} - described
    assert missing == set()
    annotation = inspect.signature(thing).return_annotation
    if inspect.isfunction(thing) and annotation not in ("None", None):
        assert "Returns" in found


@pytest.mark.parametrize("module", ["", "callbacks", "flows", "plots", "targets"])
def test_modules_have_a_docstring(module):
    assert (public(module) if module else pmf).__doc__


# ----------------------------------------------------------------------------------------- import

IMPORTS = """
import json, sys
seen = {}
def look(stage):
    seen[stage] = [name for name in NAMES if name in sys.modules]
import pymc_flows
from pymc_flows.support import compat
look("imported")
import numpy
from pymc_flows.flows import build_chain
chain = build_chain("planar*2", 2)
start = chain.initial_params(jitter=1, rng=numpy.random.default_rng(), dtype="float64")
chain.inverse_and_log_det(numpy.zeros(2), start)
look("a graph built")
compat.jax_funcify
look("asked for a conversion to JAX")
print(json.dumps(seen))
"""
SLOW = ["jax", "matplotlib", "numba", "arviz", "scipy.stats", "scipy.optimize"]


@pytest.mark.jax
def test_nothing_slow_or_optional_is_loaded_before_it_is_needed():
    program = IMPORTS.replace("NAMES", repr(SLOW))
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    seen = json.loads(run.stdout)
    assert seen["imported"] == []
    assert not {"jax", "numba"} & set(seen["a graph built"])
    assert "jax" in seen["asked for a conversion to JAX"]
