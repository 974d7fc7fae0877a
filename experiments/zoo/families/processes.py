"""Gaussian processes of gpytorch: their losses are marginal likelihoods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gpytorch
import torch

from experiments.zoo.entries import Entry

KERNELS = ("RBFKernel", "MaternKernel", "RQKernel", "PeriodicKernel", "CosineKernel", "LinearKernel", "PolynomialKernel")


def entries() -> Iterator[Entry]:
    for name in KERNELS:
        yield Entry("processes", name, lambda name=name: _Kernel(name), _points)
    yield Entry("processes", "ExactGP", _Exact, _points)
    yield Entry("processes", "ApproximateGP", _Likelihood, _points)


class _Kernel(torch.nn.Module):
    """A covariance matrix, whose diagonal is made larger, and a quadratic form."""

    def __init__(self, name: str):
        super().__init__()
        self.kernel = getattr(gpytorch.kernels, name)(**({"power": 2} if name == "PolynomialKernel" else {}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        matrix = self.kernel(x).to_dense() + torch.eye(len(x))
        return torch.linalg.solve_triangular(torch.linalg.cholesky(matrix), x.sin(), upper=False)


class _Exact(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.kernel = gpytorch.means.ConstantMean(), gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
        self.likelihood = gpytorch.likelihoods.GaussianLikelihood()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        covariance = self.kernel(x).add_jitter(1e-2)
        prior = gpytorch.distributions.MultivariateNormal(self.mean(x), covariance)
        return -self.likelihood(prior).log_prob(x[:, 0].sin())


class _Sparse(gpytorch.models.ApproximateGP):  # type: ignore[misc]
    def __init__(self) -> None:
        points = torch.linspace(-1, 1, 6)[:, None]
        distribution = gpytorch.variational.CholeskyVariationalDistribution(6)
        super().__init__(gpytorch.variational.VariationalStrategy(self, points, distribution))
        self.mean_module, self.covar_module = gpytorch.means.ConstantMean(), gpytorch.kernels.RBFKernel()

    def forward(self, x: torch.Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class _Likelihood(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.likelihood = _Sparse(), gpytorch.likelihoods.GaussianLikelihood()
        self.bound = gpytorch.mlls.VariationalELBO(self.likelihood, self.model, num_data=16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -self.bound(self.model(x), x[:, 0].sin())


def _points(model: torch.nn.Module) -> Any:
    return (torch.randn(16, 1),), {}
