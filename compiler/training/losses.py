"""What a student's outputs lose against those of the networks it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.ir.types import ValueRef
from compiler.training.answers import Answer
from compiler.training.samples import Answered

TINY = 1e-12

FAINT = 1e-7
"""Added to probabilities before their logarithm is taken; float32 has no smaller distance from 1."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""(student [batch, ...], teacher [batch, ...]) -> mean loss."""


def squared(scale: float) -> Loss:
    """Mean squared error over `scale`, the teacher's variance: 1 is a student that answers the mean."""

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(student, teacher) / scale

    return loss


def scores(kind: Answer, values: Tensor) -> Tensor:
    """Scores whose softmax over the last axis is the distribution that an output stands for; a chance becomes two
    of them, against and for.
    """
    if kind is Answer.PROBABILITIES:
        return (values + FAINT).log()
    if kind is Answer.CHANCES:
        return torch.stack([(1 - values + FAINT).log(), (values + FAINT).log()], -1)
    return values


def decisions(kind: Answer, values: Tensor) -> Tensor:
    """Scores [decisions, classes] for class labels: of several chances the largest decides; one chance or number
    decides between two classes.
    """
    values = values[:, None] if values.dim() == 1 else values
    found = scores(kind, values)
    if kind is Answer.CHANCES and values.shape[-1] > 1:
        found = found[..., 1] - found[..., 0]
    elif kind is Answer.NUMBER:
        found = torch.cat([torch.zeros_like(values), values], -1)
    return found.reshape(-1, found.shape[-1])


def divergence(temperature: float, kind: Answer = Answer.SCORES) -> Loss:
    """KL divergence of softened class distributions over the last axis of scores, times temperature squared, so
    that gradients keep their size (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).
    """

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        p, q = (F.log_softmax(scores(kind, y) / temperature, -1) for y in (teacher, student))
        p, q = p.reshape(-1, p.shape[-1]), q.reshape(-1, q.shape[-1])
        return F.kl_div(q, p, log_target=True, reduction="batchmean") * temperature**2

    return loss


def variance(teacher: Tensor) -> float:
    """Mean variance of a teacher's outputs over the samples; never zero."""
    return max(float(teacher.double().var(0, correction=0).mean()), TINY)


@dataclass(frozen=True, slots=True)
class Objective:
    """A sum of losses over the outputs of tasks. `terms`: task and number -> the value it is, weight and loss
    against the teacher's output; `labelled`: task -> the value whose cross entropy with class labels counts, the
    weight of that, and what the value holds.
    """

    terms: Mapping[Answered, tuple[ValueRef, float, Loss]]
    labelled: Mapping[str, tuple[ValueRef, float, Answer]]

    def __call__(
        self,
        student: Mapping[ValueRef, Tensor],
        teacher: Mapping[Answered, Tensor],
        labels: Mapping[str, Tensor],
    ) -> Tensor:
        """The loss of a batch."""
        parts = [self.term(a, student, teacher) for a in self.terms]
        for task, (ref, weight, kind) in self.labelled.items():
            parts.append(weight * F.cross_entropy(decisions(kind, student[ref]), labels[task].reshape(-1)))
        return torch.stack(parts).sum()

    def term(
        self, output: Answered, student: Mapping[ValueRef, Tensor], teacher: Mapping[Answered, Tensor]
    ) -> Tensor:
        """The weighted loss of one output against the teacher's."""
        ref, weight, loss = self.terms[output]
        return weight * loss(student[ref], teacher[output])
