"""Losses, labels and drawn targets against their definitions in numpy."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from compiler.ir.types import ValueRef  # noqa: E402
from compiler.training.answers import Answer  # noqa: E402
from compiler.training.fisher import drawn, drawn_loss  # noqa: E402
from compiler.training.losses import Objective, decisions, divergence, scores, squared, variance  # noqa: E402

FAINT = 1e-7
"""What is added to a probability before its logarithm."""


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_a_squared_loss_is_the_mean_over_all_elements_by_its_scale():
    student, teacher = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert float(squared(3.0)(student, teacher)) == pytest.approx((1 + 4 + 0 + 1) / 4 / 3)


def test_the_variance_is_over_samples_and_a_student_that_answers_the_mean_loses_one():
    teacher = torch.tensor([[0.0, 5.0], [2.0, 5.0], [4.0, 2.0]])
    assert variance(teacher) == pytest.approx((8 / 3 + 2) / 2)
    mean = teacher.mean(0, keepdim=True).expand_as(teacher)
    assert float(squared(variance(teacher))(mean, teacher)) == pytest.approx(1)
    assert variance(torch.full((4, 2), 3.0)) == 1e-12


@pytest.mark.parametrize("shape", [(6, 4), (3, 2, 4)])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_divergence_is_the_mean_over_decisions_of_that_from_student_to_teacher(shape, temperature):
    student, teacher = random(*shape), 2 * random(*shape, seed=1)
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    expected = (p * np.log(p / q)).sum(-1).mean() * temperature**2
    assert float(divergence(temperature)(torch.tensor(student), torch.tensor(teacher))) == pytest.approx(expected)
    assert float(divergence(temperature)(torch.tensor(teacher), torch.tensor(teacher))) == pytest.approx(
        0, abs=1e-12
    )


def test_scores_are_logarithms_of_what_an_output_says():
    values = torch.tensor([[0.25, 0.75], [0.0, 1.0]], dtype=torch.float64)
    assert scores(Answer.SCORES, values) is values and scores(Answer.NUMBER, values) is values
    np.testing.assert_allclose(scores(Answer.PROBABILITIES, values), np.log(values.numpy() + FAINT))
    against, having = np.log(1 - values.numpy() + FAINT), np.log(values.numpy() + FAINT)
    np.testing.assert_allclose(scores(Answer.CHANCES, values), np.stack([against, having], -1))


def test_every_position_of_an_answer_is_a_decision():
    values = torch.tensor(random(3, 2, 5))
    assert torch.equal(decisions(Answer.SCORES, values), values.reshape(6, 5))
    chances = torch.tensor([[[0.5, 0.2, 0.9]]], dtype=torch.float64)
    odds = np.log((chances.numpy() + FAINT) / (1 - chances.numpy() + FAINT)).reshape(1, 3)
    np.testing.assert_allclose(decisions(Answer.CHANCES, chances), odds)
    two = decisions(Answer.CHANCES, torch.tensor([[0.2], [0.5]], dtype=torch.float64))
    np.testing.assert_allclose(two.softmax(-1), [[0.8, 0.2], [0.5, 0.5]], atol=1e-6)
    np.testing.assert_array_equal(decisions(Answer.NUMBER, torch.tensor([[1.5], [-2.0]])), [[0, 1.5], [0, -2]])


def test_an_objective_adds_up_its_weighted_terms_and_labels():
    a, b = ValueRef("a"), ValueRef("b")
    student = {a: torch.tensor([[1.0, 2.0]]), b: torch.tensor([[0.0, 3.0]])}
    teacher = {("t", 0): torch.tensor([[0.0, 2.0]]), ("t", 1): torch.tensor([[0.0, 1.0]]), ("u", 0): student[a]}
    terms = {("t", 0): (a, 2.0, squared(1.0)), ("t", 1): (b, 3.0, squared(4.0)), ("u", 0): (a, 9.0, squared(1.0))}
    objective = Objective(terms, {"u": (b, 0.5, Answer.SCORES)})
    assert [float(objective.term(t, student, teacher)) for t in terms] == pytest.approx([2 * 0.5, 3 * 2 / 4, 0])
    entropy = -np.log(softmax(np.array([0.0, 3.0]))[0])
    found = objective(student, teacher, {"u": torch.tensor([[0]])})
    assert float(found) == pytest.approx(1 + 1.5 + 0.5 * entropy)


# ---------------------------------------------------------------------- drawn targets
COUNT = 20_000


@pytest.mark.parametrize("kind", [Answer.SCORES, Answer.PROBABILITIES, Answer.CHANCES])
def test_classes_are_drawn_from_the_distribution_softened_by_two(kind):
    x = np.array([2.0, 0.0, -1.0])
    values = {Answer.SCORES: x, Answer.PROBABILITIES: softmax(x), Answer.CHANCES: 1 / (1 + np.exp(-x))}[kind]
    targets = drawn(torch.tensor(values).expand(COUNT, 1, 3), 1.0, torch.Generator().manual_seed(0), kind)
    if kind is Answer.CHANCES:
        assert targets.shape == (COUNT, 3)
        found, expected = targets.double().mean(0), 1 / (1 + np.exp(-x / 2))
    else:
        assert targets.shape == (COUNT, 1)
        found, expected = torch.bincount(targets[:, 0], minlength=3) / COUNT, softmax(x / 2)
    np.testing.assert_allclose(found, expected, atol=0.015)


def test_numbers_are_drawn_with_noise_of_the_variance_of_the_answers():
    answers = torch.full((COUNT, 1), 5.0)
    targets = drawn(answers, 9.0, torch.Generator().manual_seed(0), Answer.NUMBER)
    assert float(targets.mean()) == pytest.approx(5, abs=0.1) and float(targets.std()) == pytest.approx(3, abs=0.1)


def test_the_loss_of_drawn_targets_is_their_negative_log_likelihood_summed_over_samples():
    answers = random(4, 2, 3)
    targets = np.array([[0, 1], [2, 2], [1, 0], [0, 0]])
    chosen = np.take_along_axis(softmax(answers / 2), targets[..., None], -1)
    found = drawn_loss(torch.tensor(answers), torch.tensor(targets), 1.0, Answer.SCORES)
    assert float(found) == pytest.approx(-np.log(chosen).sum())
    numbers, wanted = torch.tensor([[1.0], [4.0]]), torch.tensor([[0.0], [2.0]])
    assert float(drawn_loss(numbers, wanted, 2.5, Answer.NUMBER)) == pytest.approx((1 + 4) / 5)
