"""Estimators inside scikit-learn's tools, against training with ``train``, and against its own scores."""

import copy

import numpy as np
import pytest
import torch
from machines import run_bare
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LinearRegression
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from skerry import Classifier, Regressor, Shards, cosine, discover, ist, split, train


def net(inputs, outputs, width=64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, outputs))


X, Y = load_digits(return_X_y=True)
NAMES = np.array([f"digit {k}" for k in range(10)])
DIGITS = train_test_split(X / 16, NAMES[Y], random_state=0)  # x to train, x to test, y to train, y to test


@pytest.fixture(scope="module")
def fitted():
    x, _, y, _ = DIGITS
    torch.manual_seed(0)
    return Classifier(net(64, 10), epochs=30).fit(x, y)


def test_a_classifier_predicts_labels_and_probabilities(fitted):
    _, x, _, y = DIGITS
    assert fitted.score(x, y) > 0.93
    assert fitted.score(x, y) == accuracy_score(y, fitted.predict(x))
    weights = np.random.default_rng(0).random(len(y))
    assert fitted.score(x, y, weights) == pytest.approx(accuracy_score(y, fitted.predict(x), sample_weight=weights))
    probabilities = fitted.predict_proba(x)
    assert probabilities.shape == (len(x), 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (fitted.classes_[probabilities.argmax(1)] == fitted.predict(x)).all()
    assert fitted.classes_.tolist() == NAMES.tolist()
    assert fitted.n_features_in_ == 64


def test_a_classifier_is_train_with_defaults():
    x, test, y, _ = DIGITS
    model = net(64, 10)
    start = copy.deepcopy(model.state_dict())
    found = Classifier(model, workers=2, epochs=2, batch_size=100, local_steps=7).fit(x, y).predict(test)
    assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())
    rows, numbers = torch.tensor(x, dtype=torch.float32), torch.tensor(np.unique(y, return_inverse=True)[1])
    result = train(
        model, F.cross_entropy, Shards(rows, numbers, split(numbers, 2, "iid", 0), batch_size=100, seed=0),
        plan=discover(model, rows[:8]), algorithm=ist(2, local_steps=7, optimizer_state="travel"),
        optimizer=lambda net: torch.optim.AdamW(net.parameters(), lr=3e-3), schedule=cosine,
        num_rounds=2,  # 1347 samples: 674 a worker, 7 steps an epoch
    )  # fmt: skip
    with torch.no_grad():
        numbers = result.model(torch.tensor(test, dtype=torch.float32)).argmax(1)
    assert found.tolist() == NAMES[numbers].tolist()


@pytest.mark.slow
def test_scikit_learn_takes_a_classifier_as_its_own(fitted):
    assert is_classifier(fitted)
    assert not is_regressor(fitted)
    copied = clone(fitted)
    assert not hasattr(copied, "model_")
    assert copied.get_params().keys() == fitted.get_params().keys()
    assert torch.equal(copied.model[0].weight, fitted.model[0].weight)
    x, y = DIGITS[0][:400], DIGITS[2][:400]
    pipeline = make_pipeline(StandardScaler(), Classifier(net(64, 10), epochs=25))
    scores = cross_val_score(pipeline, x, y, cv=3)
    assert scores.shape == (3,)
    assert scores.min() > 0.75
    assert "Classifier" in repr(pipeline)
    search = GridSearchCV(pipeline, {"classifier__learning_rate": [1e-6, 3e-3]}, cv=2).fit(x, y)
    assert search.best_params_ == {"classifier__learning_rate": 3e-3}


def test_a_regressor_scores_as_scikit_learn_does():
    x, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    x = StandardScaler().fit_transform(x)
    regressor = Regressor(net(10, 1), workers=2, epochs=20).fit(x[:340], y[:340])
    assert is_regressor(regressor)
    assert regressor.predict(x).shape == y.shape
    assert regressor.score(x, y) == pytest.approx(r2_score(y, regressor.predict(x)))
    assert regressor.score(x[340:], y[340:]) > LinearRegression().fit(x[:340], y[:340]).score(x[340:], y[340:]) - 0.2
    two = np.stack([y, -y], 1)
    regressor = Regressor(net(10, 2), workers=2, epochs=5).fit(x, two)
    assert regressor.predict(x).shape == two.shape
    weights = np.random.default_rng(0).random(len(y))
    meant = r2_score(two, regressor.predict(x), sample_weight=weights)
    assert regressor.score(x, two, weights) == pytest.approx(meant)


def test_parameters_are_set_by_name():
    classifier = Classifier(net(64, 10)).set_params(workers=3, epochs=7)
    assert (classifier.get_params()["workers"], classifier.epochs) == (3, 7)
    with pytest.raises(ValueError, match=r"'worker'(.|\n)*Classifier(.|\n)*'workers'"):
        classifier.set_params(worker=3)


def test_the_same_random_state_gives_the_same_bits():
    x, test, y, _ = DIGITS
    a, b, c = (Classifier(net(64, 10), epochs=1, random_state=seed).fit(x, y).predict_proba(test) for seed in (0, 0, 1))
    assert (a == b).all()
    assert not (a == c).all()


def test_what_does_not_fit_is_named(fitted):
    x, y = DIGITS[0], DIGITS[2]
    with pytest.raises(ValueError, match=r"\bClassifier\b.*not fitted"):
        Classifier(net(64, 10)).predict(x)
    with pytest.raises(ValueError, match=r"\(9,\).*\(10,\)"):
        Classifier(net(64, 9)).fit(x, y)
    with pytest.raises(ValueError, match=r"\(2,\).*\(1,\)"):
        Regressor(net(64, 2)).fit(x, Y[: len(x)])
    with pytest.raises(ValueError, match=r"63 features.*Classifier.*64"):
        fitted.predict(x[:, 1:])
    with pytest.raises(ValueError, match=r"\(64, 2\).*\(64,\).*\bfit\b"):
        fitted.predict(np.stack([x, x], 2))
    with pytest.raises(ValueError, match=r"\bX\b.*\b1347\b.*\by\b.*\b5\b"):
        Classifier(net(64, 5)).fit(x, y[:5])
    with pytest.raises(ValueError, match=r"\by\b.*\(1347, 1\)"):
        Classifier(net(64, 10)).fit(x, y[:, None])
    with pytest.raises(ValueError, match=r"\bX\b.*\bNaN\b"):
        fitted.predict(x * np.nan)
    with pytest.raises(ValueError, match="epochs=0"):
        Classifier(net(64, 10), epochs=0).fit(x, y)


def test_skerry_says_where_scikit_learn_is_missing(tmp_path):
    code = """
import sys, skerry
sys.modules["sklearn"] = None
try:
    skerry.Classifier
except ImportError as error:
    print(error)
"""
    told = "skerry.Classifier needs scikit-learn; run: pip install 'skerry[sklearn]'\n"
    assert run_bare(tmp_path, code) == (0, told)
