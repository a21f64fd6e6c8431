"""Pictures of targets, approximations, draws, weights and training, on Matplotlib.

Every function draws its argument and returns the axes (`layers_animation` writes a file and returns
its path). None fits or samples, shows a figure, or changes Matplotlib's settings. Without ``ax`` or
``figure`` they make a new figure. Matplotlib comes with the extra ``plots`` and is imported when
the first figure is drawn.
"""

from pymc_flows.plots.calibration import calibration
from pymc_flows.plots.candidates import ladder
from pymc_flows.plots.densities import approximation_density, density_contour
from pymc_flows.plots.pair_grid import pairs
from pymc_flows.plots.passages import layers, layers_animation
from pymc_flows.plots.samples import draws, joint_kde
from pymc_flows.plots.sparsity import structure
from pymc_flows.plots.training import history, traces
from pymc_flows.plots.weights import log_weights, pareto_tail

__all__ = [
    "approximation_density",
    "calibration",
    "density_contour",
    "draws",
    "history",
    "joint_kde",
    "ladder",
    "layers",
    "layers_animation",
    "log_weights",
    "pairs",
    "pareto_tail",
    "structure",
    "traces",
]
