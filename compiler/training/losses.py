"""What a student's outputs lose against those of the networks it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.ir.types import ValueRef

TINY = 1e-12

Loss = Callable[[Tensor, Tensor], Tensor]
"""(student [batch, ...], teacher [batch, ...]) -> mean loss."""


def squared(scale: float) -> Loss:
    """Mean squared error over `scale`, the teacher's variance: 1 is a student that answers the mean."""

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(student, teacher) / scale

    return loss


def divergence(temperature: float) -> Loss:
    """KL divergence of softened class distributions over the last axis of logits, times temperature squared, so
    that gradients keep their size (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).
    """

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        p = F.log_softmax(teacher / temperature, -1).reshape(-1, teacher.shape[-1])
        q = F.log_softmax(student / temperature, -1).reshape(-1, student.shape[-1])
        return F.kl_div(q, p, log_target=True, reduction="batchmean") * temperature**2

    return loss


def variance(teacher: Tensor) -> float:
    """Mean variance of a teacher's outputs over the samples; never zero."""
    return max(float(teacher.double().var(0, correction=0).mean()), TINY)


@dataclass(frozen=True, slots=True)
class Objective:
    """A sum of losses over task outputs. `terms`: output -> its weight and loss against the teacher's output;
    `labelled`: output -> weight of the cross entropy with class labels.
    """

    terms: Mapping[ValueRef, tuple[float, Loss]]
    labelled: Mapping[ValueRef, float]

    def __call__(
        self,
        student: Mapping[ValueRef, Tensor],
        teacher: Mapping[ValueRef, Tensor],
        labels: Mapping[ValueRef, Tensor],
    ) -> Tensor:
        """The loss of a batch."""
        parts = [self.term(r, student[r], teacher[r]) for r in self.terms]
        for ref, weight in self.labelled.items():
            scores = student[ref].reshape(-1, student[ref].shape[-1])
            parts.append(weight * F.cross_entropy(scores, labels[ref].reshape(-1)))
        return torch.stack(parts).sum()

    def term(self, output: ValueRef, student: Tensor, teacher: Tensor) -> Tensor:
        """The weighted loss of one output against the teacher's."""
        weight, loss = self.terms[output]
        return weight * loss(student, teacher)
