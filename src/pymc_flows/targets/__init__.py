"""Densities with known answers: Gaussians, separate modes, bent ridges, rings, a funnel.

Each target has one definition of an unnormalised log density, for both NumPy and PyTensor, with its
exact log normalising constant and exact independent draws. So the error of an approximation can be
measured: KL(q ‖ p) = E_q[log q(z) − `Target.log_density` (z)] + `Target.log_z`.

``pot1`` to ``pot4`` are U1 to U4 of Table 1 of [1]_, with log density −U(z). U2 to U4 do not decay
along z[0] and so are no densities; as is usual, ``0.1 |z[0]|`` is added to each of them.
``eight_gaussians`` have standard deviation 0.5 and equal weights, on a circle of radius 5;
``banana`` lies along a parabola; ``ring`` is the same in all directions; ``funnel`` is Neal's.

References
----------
.. [1] Rezende & Mohamed, Variational Inference with Normalizing Flows, ICML 2015, Table 1,
   arXiv:1505.05770.
"""

from pymc_flows.targets.base import Target
from pymc_flows.targets.funnels import Funnel, funnel
from pymc_flows.targets.gaussians import Gaussian, gaussian
from pymc_flows.targets.potentials import POTENTIALS, Ridges, SplitRing, pot1, pot2, pot3, pot4
from pymc_flows.targets.shapes import Banana, Mixture, Ring, banana, eight_gaussians, ring

__all__ = [
    "POTENTIALS",
    "Banana",
    "Funnel",
    "Gaussian",
    "Mixture",
    "Ridges",
    "Ring",
    "SplitRing",
    "Target",
    "banana",
    "eight_gaussians",
    "funnel",
    "gaussian",
    "pot1",
    "pot2",
    "pot3",
    "pot4",
    "ring",
]
