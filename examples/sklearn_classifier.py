"""Use Skerry as a scikit-learn classifier: python examples/sklearn_classifier.py (seconds, no download)

The classifier discovers the plan itself. It works in pipelines, ``cross_val_score`` and ``GridSearchCV``.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import skerry


def main() -> None:
    """Train a wide net on handwritten digits as four narrow ones."""
    x, x_test, y, y_test = train_test_split(*load_digits(return_X_y=True), random_state=0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))
    pipeline = make_pipeline(StandardScaler(), skerry.Classifier(net, method="relay", workers=4, epochs=20))
    print(f"accuracy {pipeline.fit(x, y).score(x_test, y_test):.3f}")


if __name__ == "__main__":
    main()
