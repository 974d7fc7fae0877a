from typing import NamedTuple
import torch
class Key(NamedTuple):
    name: str
    place: str
    dtype: torch.dtype
    beyond: bool
