"""What a certificate says of one module."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One module: bounds on what its last operation gave, and what its operations add to the mean bound of the logits.

    `part` is NaN where the method does not take the bound apart ("shadow").
    """

    path: str
    largest_bound: float
    mean_bound: float
    mean_magnitude: float
    part: float
