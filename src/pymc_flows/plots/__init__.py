"""Pictures of targets, approximations, draws and training, on Matplotlib.

Every function draws what it is given and returns the axes: it neither fits nor samples, shows no
figure, and leaves Matplotlib's settings as they are. Without ``ax`` or ``figure`` it makes a new
figure. Matplotlib comes with ``pip install 'pymc-flows[plots]'`` and is imported when the first
figure is drawn.
"""

from pymc_flows.plots._densities import approximation_density, density_contour
from pymc_flows.plots._samples import draws, joint_kde
from pymc_flows.plots._training import history, traces

__all__ = ["approximation_density", "density_contour", "draws", "history", "joint_kde", "traces"]
