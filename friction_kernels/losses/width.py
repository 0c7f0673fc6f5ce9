"""The width of a loss's Gaussian: a number, a parameter, or a rule applied at each call."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from friction_kernels.choices import check_choice
from friction_kernels.graph import checks
from friction_kernels.graph.sigma import RULES, Rule, gaussian_sigma
from friction_kernels.graph.unit_rows import unit_rows

SIGMA_AT_FIRST = 0.5  # initial value of sigma="learnable"

Width = float | Tensor | Literal["learnable"] | Rule


class WidthModule(torch.nn.Module):
    """A module with a `sigma`; its parameters, if any, are `_sigma` or `log_sigma`."""

    def _set_sigma(self, sigma: Width) -> None:
        self.sigma_rule: Rule | None = None
        if not isinstance(sigma, str):
            checks.check_sigma(sigma)
            self._sigma = sigma
            return
        check_choice("sigma", sigma, ("learnable", *RULES))
        if sigma == "learnable":
            self.log_sigma = torch.nn.Parameter(torch.tensor(math.log(SIGMA_AT_FIRST)))
        else:
            self.sigma_rule = sigma

    @property
    def sigma(self) -> float | Tensor | str:
        """The width in use, or the name of the rule that gives it at each call."""
        return self._own_sigma() if self.sigma_rule is None else self.sigma_rule

    def _own_sigma(self) -> float | Tensor:
        return self.log_sigma.exp() if hasattr(self, "log_sigma") else self._sigma

    def _sigma_of(
        self, embeddings: Tensor, labels: Tensor, present: Tensor | slice, ignore_index: int
    ) -> float | Tensor:
        """Return sigma for this batch. present: the rows to which a rule is applied."""
        if self.sigma_rule is None:
            return self._own_sigma()
        embeddings, labels = embeddings.detach()[present], labels[present]
        _, usable = unit_rows(embeddings)  # unusable rows are reported when the graph is built
        embeddings, labels = embeddings[usable], labels[usable]
        if len(embeddings) < 2:
            return SIGMA_AT_FIRST  # arbitrary: there is no graph
        return gaussian_sigma(embeddings, labels, self.sigma_rule, ignore_index=ignore_index)
