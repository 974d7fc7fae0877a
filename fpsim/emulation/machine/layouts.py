"""Sparse tensors that store other values than one does."""

from __future__ import annotations

import torch
from torch import Tensor

COO, CSR = torch.sparse_coo, torch.sparse_csr


def with_values(x: Tensor, values: Tensor) -> Tensor:
    """A sparse tensor that stores other values in the places of x."""
    if x.layout is COO:
        return torch.sparse_coo_tensor(x._indices(), values, x.shape, is_coalesced=x.is_coalesced(), check_invariants=False)
    by_row = x.layout in (CSR, torch.sparse_bsr)
    begins, others = (x.crow_indices(), x.col_indices()) if by_row else (x.ccol_indices(), x.row_indices())
    return torch.sparse_compressed_tensor(begins, others, values, x.shape, layout=x.layout, check_invariants=False)
