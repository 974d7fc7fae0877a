"""Kahan's and Neumaier's compensated summation."""

from fpsim.accumulation.kinds.kind import Kind


class Compensated(Kind):
    """A chain in ``format`` that carries along what its additions lose; every operation rounds."""

    widens = True
    uncounted = "its additions are meant to lose what others make good"

    def __init__(self, name: str):
        self.name = name


KAHAN, NEUMAIER = Compensated("kahan"), Compensated("neumaier")
