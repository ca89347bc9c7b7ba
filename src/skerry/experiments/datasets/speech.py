"""Google Speech Commands, each clip as 4096 numbers: the input of the IST paper's speech nets."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from skerry.experiments.datasets.archives import Classification, read_archive, read_made


def speech_commands() -> Classification:
    """Return Speech Commands v0.02 with the official split: 84,843 training and 11,005 test clips of 35 words.

    Clips are log spectrograms of 128 mel bands x 32 frames, uint8, (clips, 4096); see ``originals/mel.py``. The clips
    for validation are left out.

    Raises:
        DataError: ``fetch`` has not made it on this machine, or the file is altered.

    References: Warden: Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition, 2018, arXiv 1804.03209.
    """
    arrays = read_made("speech-commands")
    return _classification(arrays, ~(arrays["test"] | arrays["validation"]))


def speech_commands_12() -> Classification:
    """Return the official *test* set in 12 classes, split by speaker: 4,036 training clips, 854 for tests.

    Features are as in ``speech_commands``. Accuracies are comparable with each other, not with published ones, which
    use the training set.

    Raises:
        DataError: the file in ``$SKERRY_DATA`` is missing or altered.
    """
    arrays = read_archive("speech_commands_12.npz")
    return _classification(arrays, ~arrays["test"])


def _classification(arrays: dict[str, NDArray[Any]], train: NDArray[Any]) -> Classification:
    x, y = arrays["x"], torch.from_numpy(arrays["label"]).long()
    x_train, x_test = torch.from_numpy(x[train]), torch.from_numpy(x[arrays["test"]])
    mean, std = _mean_and_std(x_train)
    return Classification(
        x_train, y[train], x_test, y[arrays["test"]], class_names=tuple(arrays["classes"].tolist()), mean=mean, std=std
    )


def _mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each column, with little memory; that of a constant column is not 0."""
    sums, squares = torch.zeros(2, x.shape[1], dtype=torch.float64)
    for part in torch.split(x, 4096):  # sums of whole numbers, so exact
        sums += part.double().sum(0)
        squares += part.double().square().sum(0)
    mean = sums / len(x)
    return mean.float(), (squares / len(x) - mean.square()).clamp(min=1e-6).sqrt().float()
