"""Google Speech Commands, each clip as 4096 numbers: the input of the IST paper's speech nets."""

import torch

from skerry.experiments.datasets.archives import Classification, read_archive


def speech_commands() -> Classification:
    """Return the official test set of Speech Commands v0.02, split by speaker into 4,036 training and 854 test clips.

    Clips are log spectrograms of 128 mel bands x 32 frames, uint8, (clips, 4096), in 12 classes. Accuracies are
    comparable with each other, not with published ones, which use the training set.

    Raises:
        DataError: the file in ``$SKERRY_DATA`` is missing or altered.

    References: Warden: Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition, 2018, arXiv 1804.03209.
    """
    arrays = read_archive("speech_commands_12.npz")
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["label"]).long()
    test = torch.from_numpy(arrays["test"])
    wide = x[~test].double()
    return Classification(
        x[~test], y[~test], x[test], y[test], num_classes=len(arrays["classes"]),
        mean=wide.mean(0).float(), std=wide.std(0, correction=0).float(),
    )  # fmt: skip
