"""Features against their definition, computed frame by frame; what is made of an archive against what was packed."""

import numpy as np
import originals
import pytest
import torch
from originals import publish

from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.originals.mel import mel_bands, spectrograms
from skerry.experiments.datasets.originals.speech import samples, speech_commands


def slow_spectrogram(clip):
    mirrored = np.concatenate([clip[1024:0:-1], clip, clip[-2:-1026:-1]])
    corners = 700 * (10 ** (np.linspace(0, np.log10(1 + 8000 / 700), 130)) - 1)
    x = np.zeros((128, 32))
    for frame in range(32):
        windowed = mirrored[512 * frame : 512 * frame + 2048] * np.sin(np.pi * np.arange(2048) / 2048) ** 2
        power = np.abs(np.fft.rfft(windowed)) ** 2
        for band in range(128):
            weights = np.interp(np.arange(1025) * 16_000 / 2048, corners[band : band + 3], [0, 1, 0])
            x[band, frame] = 10 * np.log10(max(1e-10, weights @ power))
    return ((x + 100) / 150 * 255).clip(0, 255).flatten()


def test_features_are_those_of_the_definition():
    t = np.arange(16_000) / 16_000
    noise = np.random.default_rng(0).normal(size=16_000)
    for clip in (0.3 * noise, np.sin(2 * np.pi * 440 * t) + 1e-3 * noise, np.where(t < 0.4, 0.01 * noise, 0)):
        got = spectrograms(torch.tensor(clip, dtype=torch.float32)[None])
        assert (got.shape, got.dtype) == ((1, 4096), torch.uint8)
        far = np.abs(got[0].numpy() - slow_spectrogram(clip))
        assert far.max() < 0.75  # half a step, and float32
        assert (far > 0.5).mean() < 0.01


def test_every_band_hears_something_and_no_frequency_counts_twice():
    bands = mel_bands()
    assert (bands.sum(1) > 0).all()
    between = bands[:, 2:-60].sum(0)  # below the first and above the last peak the sum falls
    torch.testing.assert_close(between, torch.ones_like(between))


@pytest.mark.parametrize("at_once", [3, 500])
def test_clips_are_those_of_the_archive_by_name_with_its_split(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("skerry.experiments.datasets.originals.speech.AT_ONCE", at_once)
    clips = originals.speech(tmp_path / "a.tar.gz")
    publish(monkeypatch, "SPEECH_COMMANDS", tmp_path / "a.tar.gz")
    said = []
    arrays = speech_commands(tmp_path / "a.tar.gz", said.append)
    names = sorted(clips)
    assert arrays["classes"].tolist() == ["no", "yes", "zero"]
    assert [arrays["classes"][k] for k in arrays["label"]] == [name.split("/")[0] for name in names]
    assert arrays["speaker"].tolist() == [int(name.split("/")[1][:8], 16) for name in names]
    assert np.array_equal(arrays["validation"], arrays["speaker"] == 0)
    assert np.array_equal(arrays["test"], arrays["speaker"] == 1)
    whole = np.stack([np.pad(clips[n], (0, 999_999))[:16_000] for n in names]) / 32768
    assert np.array_equal(arrays["x"], spectrograms(torch.tensor(whole, dtype=torch.float32)).numpy())
    assert any("checking" in line for line in said)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"RIFF", "not a WAV file"), (originals.wav(np.zeros(10), rate=8000), "at 8000 Hz, expected 1 of 2 at 16000")],
)
def test_other_files_than_such_clips_are_told(content, words):
    with pytest.raises(DataError, match=f"yes/a.wav: .*{words}"):
        samples(content, "yes/a.wav")
