"""Optimizers for weights of 16 bits and fewer: any torch optimizer, its updates stored so that small ones are not lost.

Plain torch code: outside emulation the weights are bfloat16 or float16 tensors, under emulation whatever the machine holds.
"""

from fpsim.optim.kahan import Kahan
from fpsim.optim.master import MasterCopy
from fpsim.optim.stochastic import Stochastic, round_to_bfloat16

__all__ = ["Kahan", "MasterCopy", "Stochastic", "round_to_bfloat16"]
