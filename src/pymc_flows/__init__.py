"""Normalizing-flow variational inference for PyMC."""

from pymc_flows import callbacks, flows, plots, targets
from pymc_flows.annealing import Anneal
from pymc_flows.approximation import NormalizingFlow
from pymc_flows.errors import FlowError, FormulaError
from pymc_flows.fitting import fit
from pymc_flows.flows import FLOWS, register_flow
from pymc_flows.formula import Formula
from pymc_flows.frame import Frame
from pymc_flows.inference import NFVI
from pymc_flows.integration import install, uninstall
from pymc_flows.maximum_likelihood import fit_draws
from pymc_flows.mcmc import neutra, sample
from pymc_flows.report import Report, report
from pymc_flows.search import find_frame
from pymc_flows.stopping import Plateau
from pymc_flows.storage import load, resume

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
    "callbacks",
    "find_frame",
    "fit",
    "fit_draws",
    "flows",
    "install",
    "load",
    "neutra",
    "plots",
    "register_flow",
    "report",
    "resume",
    "sample",
    "targets",
    "uninstall",
]
