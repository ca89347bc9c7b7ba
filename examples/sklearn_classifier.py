"""A few lines, as in scikit-learn: python examples/own_classifier.py (seconds, no download)

The plan is discovered by itself; the classifier works in pipelines, ``cross_val_score`` and ``GridSearchCV``.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import skerry


def main() -> float:
    """Train a wide net on handwritten digits as four narrow ones."""
    x_train, x_test, y_train, y_test = train_test_split(*load_digits(return_X_y=True), random_state=0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))
    pipeline = make_pipeline(StandardScaler(), skerry.Classifier(net, workers=4, epochs=20))
    score = float(pipeline.fit(x_train, y_train).score(x_test, y_test))
    print(f"accuracy {score:.3f}")
    return score


if __name__ == "__main__":
    main()
