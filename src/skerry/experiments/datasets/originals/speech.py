"""Speech Commands v0.02 from its official archive: 35 words, with the official split."""

import io
import re
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.originals.mel import DB_HIGH, DB_LOW, RATE, spectrograms
from skerry.experiments.datasets.originals.official import SPEECH_COMMANDS, check, needed
from skerry.experiments.datasets.originals.unpack import members

LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
CLIP = re.compile(r"([a-z]+)/([0-9a-f]+)_nohash_\d+\.wav")
AT_ONCE = 500  # clips
MOST_BYTES = 2**33


def speech_commands(source: Path | None, say: Callable[[str], None]) -> dict[str, NDArray[Any]]:
    """Return the arrays of ``speech_commands.npz`` from the archive.

    Clips, by name: ``x`` (their features), ``label``, ``speaker`` and whether they are in the list for ``validation``
    or ``test``; ``classes`` in alphabetical order. Clips shorter than a second are filled up with silence.

    Raises:
        DataError: it is not the official archive.
    """
    source = needed("speech-commands", source)
    say(f"speech-commands: checking {source}")
    check(source, SPEECH_COMMANDS)
    lists: dict[str, set[str]] = {}
    names, waiting, features = list[str](), list[NDArray[np.float32]](), list[NDArray[np.uint8]]()

    def compute() -> None:
        if waiting:
            features.append(spectrograms(torch.from_numpy(np.stack(waiting))).numpy())
            waiting.clear()

    for name, content in members(source, lambda n: n in LISTS.values() or bool(CLIP.fullmatch(n)), MOST_BYTES):
        if name in LISTS.values():
            lists[name] = set(content.decode().split())
            continue
        names.append(name)
        waiting.append(samples(content, name))
        if len(waiting) == AT_ONCE:
            compute()
        if len(names) % 10_000 == 0:
            say(f"speech-commands: {len(names):,} clips done")
    compute()
    if not names or lists.keys() != set(LISTS.values()):
        raise DataError(f"{source}: {len(names)} clips and {len(lists)} of the lists {', '.join(LISTS.values())} in it")
    order = sorted(range(len(names)), key=names.__getitem__)
    names = [names[k] for k in order]
    words, speakers = zip(*(CLIP.fullmatch(name).groups() for name in names), strict=True)  # type: ignore[union-attr]
    classes, labels = np.unique(words, return_inverse=True)
    return {
        "x": np.concatenate(features)[order],
        "label": labels.astype(np.uint8),
        **{part: np.array([name in lists[file] for name in names]) for part, file in LISTS.items()},
        "db_lo": np.array(DB_LOW),
        "db_hi": np.array(DB_HIGH),
        "classes": classes,
        "speaker": np.unique(speakers, return_inverse=True)[1].astype(np.int16),
    }


def samples(content: bytes, name: str) -> NDArray[np.float32]:
    """Return the first second of a WAV file in -1 .. 1, filled up with silence."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            kind = file.getnchannels(), file.getsampwidth(), file.getframerate()
            pcm = np.frombuffer(file.readframes(RATE), "<i2")
    except (wave.Error, EOFError, ValueError) as error:
        raise DataError(f"{name}: not a WAV file, or damaged ({error})") from error
    if kind != (1, 2, RATE):
        raise DataError(f"{name}: {kind[0]} channels of {kind[1]} bytes at {kind[2]} Hz, expected 1 of 2 at {RATE}")
    return np.pad(pcm / np.float32(32768), (0, RATE - len(pcm)))
