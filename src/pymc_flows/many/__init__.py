"""Fits of one model to many data sets, and the calibration of fits by simulated ones."""

from pymc_flows.many.calibration import Calibration, calibrate
from pymc_flows.many.fits import ManyFits, fit_many

__all__ = ["Calibration", "ManyFits", "calibrate", "fit_many"]
