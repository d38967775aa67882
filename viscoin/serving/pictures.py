"""Pictures that come and go: uploads within limits, images of datasets by their address, PNGs on the way out."""

import base64
import hashlib
import io
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from viscoin.datasets.base import SPLITS, ImageDataset
from viscoin.datasets.masks import object_box
from viscoin.datasets.reading import CROP, UNREADABLE, BadImage, Fit, read_square
from viscoin.errors import reason_of
from viscoin.serving.problems import Problem

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MOST_PIXELS = 16_000_000
KEPT = 256  # uploads
AT_ONCE = 2  # images decoded at a time: each may take some 300 MB
# Of parts, in their order; after Paul Tol's bright and light schemes, which those who are colour-blind can tell apart.
PARTS = (
    (68, 119, 170), (238, 102, 119), (34, 136, 51), (204, 187, 68), (102, 204, 238), (170, 51, 119), (238, 136, 102),
    (187, 204, 51),
)  # fmt: skip
UPLOAD = re.compile(r"[0-9a-f]{32}")
OF_DATASET = re.compile(r"([\w.-]+)/(train|validation|test)/(\d{1,9})")


class InMemory:
    """A file of bytes, as the readers of images want it."""

    def __init__(self, content: bytes, name: str) -> None:
        self.content, self.name = content, name

    def __str__(self) -> str:
        return self.name

    @contextmanager
    def open(self, mode: str, /) -> Iterator[io.BytesIO]:
        """The bytes from their beginning."""
        yield io.BytesIO(self.content)


@dataclass(frozen=True)
class Picture:
    """An image of one model's size: its id, pixels (H, W, 3) uint8, and its class where it is known."""

    id: str
    pixels: np.ndarray
    label: int | None = None
    dataset: ImageDataset | None = None
    index: int | None = None


class Uploads:
    """The last uploaded images, as squares of the sizes that were asked for. For several threads."""

    def __init__(self, most: int = KEPT) -> None:
        self.most = most
        self._kept: OrderedDict[tuple[str, int, Fit], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        self._decoding = threading.Semaphore(AT_ONCE)

    def add(self, content: bytes, name: str, side: int, fit: Fit = CROP) -> Picture:
        """Read an image, as a square of `side` pixels; its id is a hash of the bytes.

        Raises:
            Problem: 415 for what is no image of a format that is taken, 413 for too many pixels.
        """
        number = hashlib.sha256(content).hexdigest()[:32]
        found = self._get(number, side, fit)
        if found is None:
            check_format(content, name)
            with self._decoding:
                try:
                    file = InMemory(content, name)
                    box = object_box(file) if fit.mode == "object" else None
                    found = read_square(file, side, box, fit=fit)
                except BadImage as error:
                    raise Problem(415, f"{name} cannot be used as an image: {error}") from error
            with self._lock:
                self._kept[number, side, fit] = found
                while len(self._kept) > self.most:
                    self._kept.popitem(last=False)
        return Picture(number, found)

    def find(self, number: str, side: int, fit: Fit = CROP) -> Picture:
        """An image that was uploaded lately.

        Raises:
            Problem: 404 where it is no longer, or was read for a model of another size.
        """
        found = self._get(number, side, fit)
        if found is None:
            raise Problem(404, f"no image {number} of {side} px is known any more", "upload it again")
        return Picture(number, found)

    def _get(self, number: str, side: int, fit: Fit) -> np.ndarray | None:
        with self._lock:
            if (number, side, fit) in self._kept:
                self._kept.move_to_end((number, side, fit))
            return self._kept.get((number, side, fit))


def check_format(content: bytes, name: str) -> None:
    """Look at the header of an image before anything is decoded.

    Raises:
        Problem: 415 or 413.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise Problem(413, f"{name} has far too many pixels", "make it smaller") from error
    except UNREADABLE as error:
        said = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({reason_of(error)})"
        raise Problem(415, f"{name} is no image that is taken{said}", f"send {', '.join(FORMATS)}") from error
    if width * height > MOST_PIXELS:
        raise Problem(
            413, f"{name} has {width} x {height} pixels, more than {MOST_PIXELS // 10**6} million", "make it smaller"
        )


def of_dataset(dataset: ImageDataset, split: str, index: int) -> Picture:
    """An image of a split.

    Raises:
        Problem: 404 where there is none of that index.
    """
    if split not in SPLITS or not 0 <= index < len(dataset):
        raise Problem(404, f"{dataset.name} has {len(dataset)} {split} images, counted from 0; there is no {index}")
    pixels = np.array(dataset.pixels[index])
    return Picture(f"{dataset.name}/{split}/{index}", pixels, int(dataset.labels[index]), dataset, index)


def with_parts(dataset: ImageDataset, index: int, pixels: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 with its visible parts tinted, each in a colour of its own.

    Raises:
        Problem: 404, its dataset knows no parts.
    """
    if not dataset.part_names:
        raise Problem(404, f"dataset {dataset.name} knows no parts")
    shown, masks = pixels.astype(np.float32) * 0.45, dataset.part_masks(index)
    for number, mask in enumerate(masks):
        shown[mask] += 0.55 * np.array(PARTS[number % len(PARTS)], dtype=np.float32)
    return shown.clip(0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """PNG of an image (H, W, 3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def data_url(pixels: np.ndarray) -> str:
    """PNG of an image (H, W, 3) uint8 as text for a page."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"
