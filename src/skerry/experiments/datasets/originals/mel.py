"""The 4096 features of a spoken word: a spectrogram of 128 mel bands x 32 frames, in decibels, as bytes.

Power of the short-time Fourier transform with a Hann window of 2048 samples every 512, the clip mirrored at both ends;
triangular bands, equally wide on the mel scale ``2595 log10(1 + f / 700)`` from 0 to 8000 Hz, each with a peak of 1;
``10 log10(max(power, 1e-10))``, of which -100 .. 50 dB are rounded to 0 .. 255. Bytes are band by band.
"""

import torch
from torch import Tensor

RATE = 16_000
BANDS, FRAMES = 128, 32
WINDOW, HOP = 2048, 512
DB_LOW, DB_HIGH = -100.0, 50.0


def spectrograms(clips: Tensor) -> Tensor:
    """Return the features of ``clips`` of one second: float32 in -1 .. 1, (clips, 16000) -> uint8, (clips, 4096)."""
    window = torch.hann_window(WINDOW)
    frames = torch.stft(clips, WINDOW, HOP, window=window, center=True, pad_mode="reflect", return_complex=True)
    power = mel_bands() @ frames.abs().square()
    decibels = 10 * power.clamp(min=1e-10).log10()
    scaled = (decibels - DB_LOW) * (255 / (DB_HIGH - DB_LOW))
    return scaled.round().clamp(0, 255).to(torch.uint8).flatten(1)


def mel_bands() -> Tensor:
    """Return the weight of each frequency in each band, float32, (128, 1025)."""
    frequencies = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    top = 2595 * torch.log10(torch.tensor(1 + RATE / 2 / 700, dtype=torch.float64))
    corners = 700 * (10 ** (torch.linspace(0, 1, BANDS + 2, dtype=torch.float64) * top / 2595) - 1)
    low, peak, high = (corners[k : BANDS + k, None] for k in range(3))
    rising, falling = (frequencies - low) / (peak - low), (high - frequencies) / (high - peak)
    return torch.minimum(rising, falling).clamp(min=0).float()
