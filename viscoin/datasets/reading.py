"""One image file, on disk or inside a zip: its pixels as upright RGB, or the reason why it cannot be used."""

import struct
import zlib
from contextlib import AbstractContextManager
from typing import IO, Literal, Protocol
from zipfile import BadZipFile

import numpy as np
from PIL import Image, ImageOps

EXTENSIONS = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
# Photographs that need more than Pillow to be read.
UNREAD = {".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".rw2", ".psd"}
MINIMUM_SIDE = 8  # pixels; less shows nothing, whatever the magnification
# What Pillow and zipfile raise on damaged, truncated, encrypted or enormous files.
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
    RuntimeError, struct.error, zlib.error, BadZipFile, Image.DecompressionBombError,
)  # fmt: skip


Box = tuple[float, float, float, float]  # left, top, right, bottom, pixels


class ImageFile(Protocol):
    """What is read as an image: a `Path`, or a member of a zip. Its text is what messages call it."""

    def open(self, mode: Literal["rb"], /) -> AbstractContextManager[IO[bytes]]: ...


class BadImage(ValueError):
    """An image file that cannot be used; the text is the reason, without the file's name."""


def read_rgb(file: ImageFile, least: int = 0) -> Image.Image:
    """8-bit RGB, upright, on white where transparent.

    Args:
        least: a large JPEG may be decoded at a half, quarter or eighth of its size, with sides not below this one,
            which is much faster; 0 for the full size.

    Raises:
        BadImage: damaged, no image at all, too small, or so large that Pillow takes it for an attack.
    """
    try:
        with file.open("rb") as stream, Image.open(stream) as image:
            if least:
                image.draft(None, (least, least))
            ImageOps.exif_transpose(image, in_place=True)
            rgb = to_rgb(image)
            rgb.load()
    except Image.UnidentifiedImageError as error:
        raise BadImage("no image of a known format") from error
    except UNREADABLE as error:
        raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error
    if min(rgb.size) < MINIMUM_SIDE:
        raise BadImage(f"{rgb.width}x{rgb.height} px, at least {MINIMUM_SIDE} px a side are needed")
    return rgb


def read_square(file: ImageFile, resolution: int, box: Box | None = None) -> np.ndarray:
    """uint8 RGB (resolution, resolution, 3): upright, on white where transparent, centre-cropped, resampled.

    With a box, the square is cut out of the box, as far as that lies in the image.

    Raises:
        BadImage: as `read_rgb`, or the box lies outside the image.
    """
    return square(read_region(file, resolution, box), resolution)


def read_region(file: ImageFile, resolution: int, box: Box | None = None) -> Image.Image:
    """What `read_square` makes a square of: at its own size, or at a smaller one that is still ample."""
    image = read_rgb(file, 0 if box else 2 * resolution)
    if box is not None:
        left, top, right, bottom = box
        inside = (max(0, left), max(0, top), min(image.width, right), min(image.height, bottom))
        if inside[2] - inside[0] < 1 or inside[3] - inside[1] < 1:
            raise BadImage(f"the box {box} lies outside its {image.width}x{image.height} px")
        image = image.crop(tuple(round(side) for side in inside))  # type: ignore[arg-type]
    return image


def square(image: Image.Image, resolution: int) -> np.ndarray:
    """uint8 RGB (resolution, resolution, 3), centre-cropped and resampled without aliasing."""
    # Lanczos differs by less than a grey level on average, and takes as long as decoding does.
    return np.asarray(ImageOps.fit(image, (resolution, resolution), Image.Resampling.BICUBIC))


def square_around(box: Box, size: tuple[int, int]) -> Box:
    """The smallest square around a box, moved into the image and cut at its edges; whole pixels.

    Args:
        box: left, top, right and bottom.
        size: width and height of the image.
    """
    edges = []
    side = max(box[2] - box[0], box[3] - box[1])
    for low, high, length in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        start = min(max(0.0, (low + high - side) / 2), max(0.0, length - side))
        edges.append((round(start), round(min(start + side, length))))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def image_size(file: ImageFile) -> tuple[int, int]:
    """Width and height as stored, from the header alone."""
    with file.open("rb") as stream, Image.open(stream) as image:
        return image.size


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a grey, palette, transparent, CMYK or 16-bit image."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        if image.mode.startswith("I"):
            values = values / 257  # 16 bit to 8 bit
        image = Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
