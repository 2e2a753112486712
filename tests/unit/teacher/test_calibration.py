from __future__ import annotations

import pytest
import torch

from instil.teacher.calibration import average, log_reference, probabilities


def logprobs(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_probabilities_are_of_the_labels_among_themselves() -> None:
    got = probabilities(logprobs([[0.1, 0.3], [0.02, 0.02]]))
    torch.testing.assert_close(got, logprobs([[0.25, 0.75], [0.5, 0.5]]).exp())


def test_calibration_by_hand() -> None:
    """p / r is (0.6 / 0.8, 0.4 / 0.2) = (0.75, 2): of their sum 2.75, 3 and 8 elevenths."""
    got = probabilities(
        logprobs([[0.06, 0.04]]), torch.tensor([0.8, 0.2], dtype=torch.float64).log()
    )
    torch.testing.assert_close(got, torch.tensor([[3 / 11, 8 / 11]], dtype=torch.float64))


def test_a_reference_without_a_tilt_changes_nothing() -> None:
    said = logprobs([[0.1, 0.3, 0.2], [0.5, 0.1, 0.1]])
    even = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(probabilities(said, even), probabilities(said))


def test_the_reference_itself_is_calibrated_to_even() -> None:
    said = logprobs([[0.5, 0.1, 0.15]])
    got = probabilities(said, log_reference(said))
    torch.testing.assert_close(got, torch.full((1, 3), 1 / 3, dtype=torch.float64))


def test_the_reference_is_the_mean_of_normalised_predictions() -> None:
    """The first row has a tenth of the second's mass, and as much weight."""
    got = log_reference(logprobs([[0.01, 0.03], [0.3, 0.1]])).exp()
    torch.testing.assert_close(got, torch.tensor([0.5, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_prediction_takes_a_tilt_out(seed: int) -> None:
    """A predictor that knows the labels and leans to the first one, whatever the query."""
    generator = torch.Generator().manual_seed(seed)
    gold = torch.arange(3).repeat(200)
    logits = 0.5 * torch.randn(600, 3, generator=generator) + 1.5 * torch.eye(3)[gold]
    tilted = (logits + torch.tensor([3.0, 0.0, -1.0])).log_softmax(-1) - 5
    before = probabilities(tilted)
    after = probabilities(tilted, log_reference(tilted))
    assert before.mean(0)[0] > 0.85
    assert (after.mean(0) - 1 / 3).abs().max() < 0.15
    assert (after.argmax(-1) == gold).float().mean() > 0.8
    assert (before.argmax(-1) == gold).float().mean() < 0.6


def test_the_average_is_of_probabilities() -> None:
    one = torch.tensor([[1.0, 0.0], [0.4, 0.6]])
    other = torch.tensor([[0.0, 1.0], [0.2, 0.8]])
    torch.testing.assert_close(average([one, other]), torch.tensor([[0.5, 0.5], [0.3, 0.7]]))
    assert torch.equal(average([one]), one)


def test_a_reference_that_would_vanish_divides_all_the_same() -> None:
    said = torch.tensor([[-1.0, -120.0], [-2.0, -130.0]])
    calibrated = probabilities(said, log_reference(said))
    assert torch.isfinite(calibrated).all()
    assert calibrated[0, 1] > calibrated[1, 1]
