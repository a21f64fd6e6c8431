"""Normalizing-flow variational inference for PyMC."""

from pymc_flows import callbacks, flows, plots, targets
from pymc_flows.approximation import NormalizingFlow
from pymc_flows.diagnostics.verdict import Report, report
from pymc_flows.errors import FlowError, FormulaError
from pymc_flows.fitting.entry import fit
from pymc_flows.fitting.maximum_likelihood import fit_draws
from pymc_flows.fitting.nfvi import NFVI
from pymc_flows.fitting.resume import load, resume
from pymc_flows.flows import FLOWS, register_flow
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.integration import install, uninstall
from pymc_flows.many import calibrate, fit_many
from pymc_flows.mcmc.handoff import neutra, sample
from pymc_flows.model.structure import Structure, structure
from pymc_flows.rows import Rows
from pymc_flows.start.search import find_frame
from pymc_flows.training.annealing import Anneal
from pymc_flows.training.stopping import Plateau

__version__ = "0.1.0"

__all__ = [
    "FLOWS",
    "NFVI",
    "Anneal",
    "FlowError",
    "Formula",
    "FormulaError",
    "Frame",
    "NormalizingFlow",
    "Plateau",
    "Report",
    "Rows",
    "Structure",
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
]
