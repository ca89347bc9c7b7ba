"""Small originals in the formats of the published ones: archives, packages, and files as Python 2 pickled them."""

import gzip
import hashlib
import io
import lzma
import struct
import tarfile
import wave
from dataclasses import replace

import numpy as np

from skerry.experiments.datasets.originals import official


def tar(members, links=None):
    """Return a tar archive of files, by name, and of symbolic links, by name and target."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return content.getvalue()


def deb(members):
    """Return a Debian package of files, by name."""
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": lzma.compress(tar({"./control": b"x"}))}
    parts["data.tar.xz"] = lzma.compress(tar({f"./{name}": data for name, data in members.items()}))
    package = b"!<arch>\n"
    for name, data in parts.items():
        package += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    return package


def publish(monkeypatch, name, path):
    """Make the official file ``name``, a constant of ``official`` of which others hold copies, the one at ``path``."""
    content = path.read_bytes()
    known = replace(getattr(official, name), sha256=hashlib.sha256(content).hexdigest(), num_bytes=len(content))
    module = {"CIFAR10": "cifar", "SPEECH_COMMANDS": "speech"}[name]
    monkeypatch.setattr(f"skerry.experiments.datasets.originals.{module}.{name}", known)


class Pickle:
    """Writes pickles as Python 2 did, protocol 2."""

    def __init__(self):
        self.out, self.memo = [b"\x80\x02"], {}

    def known(self, key, write):
        if key in self.memo:
            self.out.append(b"h" + bytes([self.memo[key]]))
        else:
            write()
            self.memo[key] = len(self.memo) + 1
            self.out.append(b"q" + bytes([self.memo[key]]))

    def name(self, module, name):
        self.known((module, name), lambda: self.out.append(f"c{module}\n{name}\n".encode()))

    def number(self, n):
        code, form = next(
            (c, f) for c, f, end in ((b"K", "<B", 2**8), (b"M", "<H", 2**16), (b"J", "<i", 2**31)) if n < end
        )
        self.out.append(code + struct.pack(form, n))

    def text(self, content):
        short = len(content) < 256
        self.out.append((b"U" + bytes([len(content)]) if short else b"T" + struct.pack("<i", len(content))) + content)

    def array(self, a):
        self.name("numpy.core.multiarray", "_reconstruct")
        self.name("numpy", "ndarray")
        self.out.append(b"K\x00\x85U\x01b\x87R")
        self.known(id(a), lambda: None)
        self.out.append(b"(K\x01")
        for size in a.shape:
            self.number(size)
        self.out.append({1: b"\x85", 2: b"\x86"}[a.ndim])

        def dtype():
            self.name("numpy", "dtype")
            self.text(a.dtype.str[1:].encode())
            self.out.append(b"K\x00K\x01\x87R")

        if ("dtype", a.dtype) in self.memo:
            self.known(("dtype", a.dtype), dtype)
        else:
            self.known(("dtype", a.dtype), dtype)
            self.out.append(b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
        self.out.append(b"\x89")
        self.text(a.tobytes())
        self.out.append(b"tb")

    def matrix(self, data, indices, indptr, shape):
        self.name("scipy.sparse.csr", "csr_matrix")
        self.out.append(b")\x81}(")
        for key, part in (("indices", indices), ("data", data), ("indptr", indptr)):
            self.text(key.encode())
            self.array(part)
        self.text(b"_shape")
        for size in shape:
            self.number(size)
        self.out.append(b"\x86")
        self.text(b"maxprint")
        self.out.append(b"K2ub")

    def lists(self, found):
        self.name("collections", "defaultdict")
        self.name("__builtin__", "list")
        self.out.append(b"\x85R(")
        for key, items in found.items():
            self.number(key)
            self.out.append(b"](")
            for item in items:
                self.number(item)
            self.out.append(b"e")
        self.out.append(b"u")

    def done(self):
        return b"".join([*self.out, b"."])


def pickled(kind, *arguments):
    """Return the pickle of an "array", a "matrix" or "lists"."""
    pickle = Pickle()
    getattr(pickle, kind)(*arguments)
    return pickle.done()


def planetoid(arrays, order):
    """Return the eight files of a graph in the format of ``cora.npz``; ``order``: the test nodes as they are listed."""
    num_train, num_classes = int(arrays["train"].sum()), int(arrays["label"].max()) + 1
    first = int(min(order))
    one_hot = np.eye(num_classes, dtype=np.int32)

    def rows(nodes):
        starts, ends = arrays["x_indptr"][nodes], arrays["x_indptr"][np.add(nodes, 1)]
        places = np.concatenate([np.arange(a, b)[::-1] for a, b in zip(starts, ends, strict=True)])  # not sorted
        indptr = np.cumsum([0, *(ends - starts)]).astype(np.int32)
        shape = len(nodes), int(arrays["x_shape"][1])
        return arrays["x_data"][places], arrays["x_indices"][places], indptr, shape

    graph = {}
    for a, b in arrays["edges"].T.tolist():  # both ways and, as published, some twice
        graph.setdefault(a, []).append(b)
        graph.setdefault(b, []).extend([a, a])
    graph.setdefault(0, []).append(0)
    return {
        "x": pickled("matrix", *rows(np.arange(num_train))),
        "y": pickled("array", one_hot[arrays["label"][:num_train]]),
        "allx": pickled("matrix", *rows(np.arange(first))),
        "ally": pickled("array", one_hot[arrays["label"][:first]]),
        "tx": pickled("matrix", *rows(np.array(order))),
        "ty": pickled("array", one_hot[arrays["label"][order]]),
        "graph": pickled("lists", graph),
        "test.index": "".join(f"{node}\n" for node in order).encode(),
    }


def cifar(path, num=12, seed=0):
    """Write an archive like that of CIFAR-10 with ``num`` images a file; return its pixels and classes, by part."""
    rng, members, found = np.random.default_rng(seed), {}, {"train": [], "test": []}
    for file in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
        x = rng.integers(0, 256, (num, 3, 32, 32), dtype=np.uint8)
        y = (np.arange(num) % 10).astype(np.uint8)
        found["test" if file == "test_batch.bin" else "train"].append((x, y))
        members[f"cifar-10-batches-bin/{file}"] = np.concatenate([y[:, None], x.reshape(num, -1)], 1).tobytes()
    members["cifar-10-batches-bin/batches.meta.txt"] = b"airplane\n"
    path.write_bytes(gzip.compress(tar(members)))
    return {part: tuple(map(np.concatenate, zip(*files, strict=True))) for part, files in found.items()}


def wav(samples, rate=16_000):
    """Return a WAV file of 16-bit samples."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return content.getvalue()


def speech(path, seed=0):
    """Write an archive like that of Speech Commands with 3 words of 8 clips; return their samples, by name."""
    rng, clips = np.random.default_rng(seed), {}
    for word in ("yes", "no", "zero"):
        for k in range(8):
            length = (16_000, 11_147, 16_001)[k % 3]
            clips[f"{word}/{k // 2:08x}_nohash_{k % 2}.wav"] = rng.integers(-9000, 9000, length)
    names = list(clips)
    rng.shuffle(names)
    members = {"_background_noise_/pink_noise.wav": wav(np.zeros(40_000))} | {name: wav(clips[name]) for name in names}
    for file, speaker in (("validation_list.txt", 0), ("testing_list.txt", 1)):
        members[file] = "".join(f"{name}\n" for name in names if f"/{speaker:08x}" in name).encode()
    path.write_bytes(gzip.compress(tar({f"./{name}": content for name, content in members.items()})))
    return clips
