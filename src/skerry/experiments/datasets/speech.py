"""Google Speech Commands as one vector of 4096 numbers a clip, the input of the IST paper's speech nets."""

from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.experiments.datasets.archives import read_archive


@dataclass(frozen=True, eq=False)
class Speech:
    """Clips in memory: log spectrograms of 128 mel bands x 32 frames.

    Attributes:
        x_train, x_test: uint8, (clips, 4096).
        y_train, y_test: classes, int64, (clips,).
        num_classes: 12.
        mean, std: of each feature of x_train, float32, (4096,).
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    mean: Tensor
    std: Tensor

    def standardize(self, x: Tensor) -> Tensor:
        """Return stored clips as floats of mean 0 and variance 1 over the training clips, each feature for itself."""
        return (x.float() - self.mean) / self.std


def speech_commands() -> Speech:
    """Return the official test set of Speech Commands v0.02, split by speaker into training and test clips.

    4,036 and 854 clips: accuracies are comparable with each other, not with those published for the training set.

    Raises:
        DataError: the file is not in ``$SKERRY_DATA``, or altered.

    References: Warden: Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition, 2018, arXiv 1804.03209.
    """
    arrays = read_archive("speech_commands_12.npz")
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["label"]).long()
    test = torch.from_numpy(arrays["test"])
    wide = x[~test].double()
    return Speech(
        x_train=x[~test],
        y_train=y[~test],
        x_test=x[test],
        y_test=y[test],
        num_classes=len(arrays["classes"]),
        mean=wide.mean(0).float(),
        std=wide.std(0, correction=0).float(),
    )
