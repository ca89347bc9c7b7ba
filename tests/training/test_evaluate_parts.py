"""Evaluation: by hand and in parts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skerry.training import evaluate


def test_evaluation_by_hand_and_in_parts():
    model = nn.Linear(3, 4)
    x, y = torch.randn(50, 3), torch.randint(0, 4, (50,))
    score = evaluate(model, F.cross_entropy, (x, y), batch_size=7)
    assert score.count == 50
    assert score.loss == pytest.approx(F.cross_entropy(model(x), y).item())
    assert score.accuracy == (model(x).argmax(1) == y).double().mean().item()
    assert model.training
    with pytest.raises(ValueError, match=r"\btest=None\b"):
        evaluate(model, F.cross_entropy, (x[:0], y[:0]))
