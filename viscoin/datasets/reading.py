"""One image file, on disk or inside a zip: its pixels as upright RGB, or the reason why it cannot be used."""

import logging
import math
import struct
import warnings
import zlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Semaphore
from typing import IO, Literal, NamedTuple, Protocol, get_args
from zipfile import BadZipFile

import numpy as np
from PIL import ExifTags, Image, ImageOps

from viscoin.config import DatasetConfig, FitMode, Interpolation
from viscoin.datasets.depth import Deep, Extent, Whites, deep_values, described, extent, is_deep, raw_mode, to_8_bits
from viscoin.errors import Refused, reason_of

EXTENSIONS = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
# Photographs that need more than Pillow to be read.
UNREAD = {".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".rw2", ".psd"}
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how such files begin
MINIMUM_SIDE = 8  # pixels; less shows nothing, whatever the magnification
MOST_PIXELS = 178_956_970  # where Pillow stops, too; some 700 MB when decoded
LARGE = 2**22  # pixels from which on an image is reduced before its colours are converted
HUGE = 2**24  # pixels from which on only one image is read at a time, so that threads do not multiply the memory
# What Pillow and zipfile raise on damaged, truncated, encrypted or enormous files.
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
    RuntimeError, struct.error, zlib.error, BadZipFile, Image.DecompressionBombError,
)  # fmt: skip

# There is a bound of our own, with a reason and a remedy.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
logger = logging.getLogger(__name__)
_one_huge = Semaphore(1)

Box = tuple[float, float, float, float]  # left, top, right, bottom, pixels


class ImageFile(Protocol):
    """What is read as an image: a `Path`, or a member of a zip. Its text is what messages call it."""

    def open(self, mode: Literal["rb"], /) -> AbstractContextManager[IO[bytes]]: ...


class BadImage(ValueError):
    """An image file that cannot be used; the text is the reason, without the file's name."""


class Placement(NamedTuple):
    """Where a picture comes to lie in its square: this box of it, resized to `size`, its upper left at `corner`."""

    box: Box
    size: tuple[int, int]
    corner: tuple[int, int]


@dataclass(frozen=True)
class Fit:
    """How a picture of any shape becomes a square.

    Attributes:
        mode: "crop": the central square. "pad": all of it, with white borders. "squash": all of it, whatever becomes of
            its aspect ratio. "object": the square around what is opaque or masked, with white borders where the picture
            ends; all of it where nothing is masked.
        crop_share: in (0, 1]; "crop" and "squash" resize the shorter side, or both, to `floor(side / crop_share)`
            and show the central square of that, as the evaluation transforms of timm and torchvision do, to the pixel.
            None: all of the central square or picture, in one step. The other modes leave nothing out.
        interpolation: "bicubic", "bilinear", "lanczos" or "nearest", all but the last without aliasing.

    Raises:
        Refused: an unknown mode or interpolation, or a share out of range.
    """

    mode: FitMode = "crop"
    crop_share: float | None = None
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        for key, value, known in (
            ("fit", self.mode, get_args(FitMode)),
            ("interpolation", self.interpolation, get_args(Interpolation)),
        ):
            if value not in known:
                raise Refused(key, value, "unknown", f"choose {', '.join(known)}")
        if self.crop_share is not None and not 0 < self.crop_share <= 1:
            raise Refused("crop_share", self.crop_share, "out of range", "give a share above 0, at most 1")

    @classmethod
    def of(cls, config: DatasetConfig) -> "Fit":
        """That of a recipe."""
        return cls(config.fit, config.crop_share, config.interpolation)

    @property
    def cuts_squares(self) -> bool:
        """Whether something of a picture that is square already is left out."""
        return self.mode == "object" or (self.mode != "pad" and self.crop_share not in (None, 1))

    @property
    def resample(self) -> Image.Resampling:
        return Image.Resampling[self.interpolation.upper()]

    def place(self, size: tuple[int, int], side: int) -> Placement:
        """Where a picture of this width and height comes to lie in a square of so many pixels a side."""
        width, height = size
        whole = (0.0, 0.0, float(width), float(height))
        if self.mode in ("pad", "object"):
            scale = side / max(size)
            inner = max(1, round(width * scale)), max(1, round(height * scale))
            return Placement(whole, inner, ((side - inner[0]) // 2, (side - inner[1]) // 2))
        if self.mode == "crop" and self.crop_share is None:
            short = min(size)
            left, top = (width - short) * 0.5, (height - short) * 0.5
            return Placement((left, top, left + short, top + short), (side, side), (0, 0))
        short = math.floor(side / (self.crop_share or 1))
        outer = short, short
        if self.mode == "crop":
            outer = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        return Placement(whole, outer, (-round((outer[0] - side) / 2), -round((outer[1] - side) / 2)))

    def visible(self, size: tuple[int, int], side: int) -> Box:
        """What of such a picture its square shows, pixels of the picture."""
        (left, top, right, bottom), (width, height), (x, y) = self.place(size, side)
        across, down = (right - left) / width, (bottom - top) / height
        return (
            max(left, left - x * across),
            max(top, top - y * down),
            min(right, left + (side - x) * across),
            min(bottom, top + (side - y) * down),
        )

    def enlarges(self, size: tuple[int, int], side: int) -> bool:
        """Whether pixels of such a picture become larger."""
        (left, top, right, bottom), (width, height), _ = self.place(size, side)
        return width * height > (right - left) * (bottom - top)

    def apply(
        self, image: Image.Image, side: int, resample: Image.Resampling | None = None, ground: str | int = "white"
    ) -> Image.Image:
        """A picture as a square of so many pixels a side.

        Args:
            resample: in place of `interpolation`, for masks.
            ground: colour of borders.

        Raises:
            BadImage: too narrow to be resized by its shorter side.
        """
        box, size, corner = self.place(image.size, side)
        if size[0] * size[1] > MOST_PIXELS:
            raise BadImage(f"{image.width}x{image.height} px, too narrow for a central square; crop it first")
        inner = image.resize(size, self.resample if resample is None else resample, box)
        if size == (side, side):
            return inner
        whole = Image.new(image.mode, (side, side), ground)
        whole.paste(inner, corner)
        return whole


CROP = Fit()


def read_rgb(file: ImageFile, least: int = 0, whites: Whites | None = None) -> Image.Image:
    """8-bit RGB, upright, on white where transparent.

    Args:
        least: an image may be made smaller, with sides not below this one, which takes less time and memory: a JPEG is
            decoded at a half, quarter or eighth of its size, pixels of an image of more than 4 million are averaged;
            0 for the full size.
        whites: what is white in images of more than 8 bits (see `depth`); None: decided for this one alone, and
            reported.

    Raises:
        BadImage: damaged, no image at all, too small, too large, or of values of which black and white are unknown.
    """
    try:
        with file.open("rb") as stream, Image.open(stream) as image:
            if least:
                image.draft(None, (least, least))
            with _one_huge if image.width * image.height > HUGE else nullcontext():
                rgb = _upright_rgb(image, stream, least, whites, str(file))
    except UNREADABLE as error:
        raise _bad(error, file) from error
    if min(rgb.size) < MINIMUM_SIDE:
        raise BadImage(f"{rgb.width}x{rgb.height} px, at least {MINIMUM_SIDE} px a side are needed")
    return rgb


def _upright_rgb(image: Image.Image, stream: IO[bytes], least: int, whites: Whites | None, name: str) -> Image.Image:
    deep = _deep(image, stream)
    shown = image
    if deep is None:
        _widen_clear_grey(image)
        image.load()
    else:
        if whites is None and (assumed := described(extent(deep), name)):
            logger.warning(assumed)
        shown = to_8_bits(deep, whites)
        del deep
    factor = max(1, min(shown.size) // least) if least else 1
    rgb = _in_strips(shown, factor) if shown.width * shown.height > LARGE else to_rgb(shown)
    known = image.getexif() if shown is image or "exif" in image.info else {}  # without, Pillow decodes to look for it
    orientation = known.get(ExifTags.Base.Orientation, 1)
    if orientation != 1 and image.format != "TIFF":  # of which Pillow and OpenCV turn the pixels themselves
        rgb.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(rgb, in_place=True)
    rgb.load()
    return rgb


def _widen_clear_grey(image: Image.Image) -> None:
    """Pillow makes 8 bits of a PNG's greys of 2 and 4 bits, but not of the one among them that is transparent."""
    bits = {"L;2": 2, "L;4": 4}.get(raw_mode(image))
    clear = image.info.get("transparency")
    if bits is not None and isinstance(clear, int) and clear < 2**bits:
        image.info["transparency"] = clear * 255 // (2**bits - 1)


def _deep(image: Image.Image, stream: IO[bytes]) -> Deep | None:
    most = MOST_PIXELS // 2 if is_deep(image) else MOST_PIXELS
    if image.width * image.height > most:
        size = f"{image.width}x{image.height} = {image.width * image.height} pixels"
        raise BadImage(f"Image size ({size}) exceeds limit of {most} pixels; make it smaller")
    return deep_values(image, stream)


def _in_strips(image: Image.Image, factor: int) -> Image.Image:
    """RGB, each square of `factor` pixels a side averaged; never more than a strip of it is held at full size."""
    small = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    rows = max(1, LARGE // 4 // (image.width * factor)) * factor
    for top in range(0, image.height, rows):
        strip = to_rgb(image.crop((0, top, image.width, min(top + rows, image.height))))
        small.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return small


def _bad(error: BaseException, file: ImageFile) -> BadImage:
    """The reason, in words that help."""
    if isinstance(error, BadImage):
        return error
    if isinstance(error, Image.UnidentifiedImageError):
        return BadImage(
            "a TIFF of a kind of pixels that is not read; convert it to 8 bits"
            if _is_tiff(file)
            else "no image of a known format"
        )
    if isinstance(error, Image.DecompressionBombError):
        return BadImage(f"{str(error).partition(',')[0]}; make it smaller")
    if isinstance(error, MemoryError):
        return BadImage("not enough memory to read it; make it smaller")
    return BadImage(reason_of(error))


def _is_tiff(file: ImageFile) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) in TIFF


def has_several(file: ImageFile) -> bool:
    """Whether a file holds several pictures, as pages or an animation, of which the first is read; not of JPEGs."""
    try:
        with file.open("rb") as stream:
            start = stream.read(41)
            if start[:4] not in (*TIFF, b"RIFF", b"GIF8") and start[37:41] != b"acTL":
                return False
            stream.seek(0)
            with Image.open(stream) as image:
                return bool(getattr(image, "is_animated", False))
    except UNREADABLE:
        return False


def stored_extent(file: ImageFile) -> Extent | None:
    """How far the values of an image of more than 8 bits go up; None for all others, and for those that are refused.

    Only the first bytes are read of the kinds of files that never have more than 8 bits.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(26)
            if start[:2] == b"\xff\xd8" or start[:4] in (b"RIFF", b"GIF8") or start[:2] == b"BM":
                return None
            if start[:8] == b"\x89PNG\r\n\x1a\n" and start[24:25] != b"\x10":
                return None
            stream.seek(0)
            with Image.open(stream) as image, _one_huge if image.width * image.height > HUGE else nullcontext():
                deep = _deep(image, stream)
                return None if deep is None else extent(deep)
    except UNREADABLE:
        return None


def read_square(
    file: ImageFile, resolution: int, box: Box | None = None, whites: Whites | None = None, fit: Fit = CROP
) -> np.ndarray:
    """uint8 RGB (resolution, resolution, 3): upright, on white where transparent, fitted into a square.

    With a box, the square is made of the box, as far as that lies in the image.

    Raises:
        BadImage: as `read_rgb`, or the box lies outside the image.
    """
    return square(read_region(file, resolution, box, whites, fit), resolution, fit)


def read_region(
    file: ImageFile, resolution: int, box: Box | None = None, whites: Whites | None = None, fit: Fit = CROP
) -> Image.Image:
    """What `read_square` makes a square of: at its own size, or at a smaller one that is still ample.

    A fit with a share is of pixels of the file, as those do it that it has to equal.
    """
    image = read_rgb(file, 0 if box or fit.crop_share else 2 * resolution, whites)
    return image if box is None else cut(image, box)


def cut(image: Image.Image, box: Box) -> Image.Image:
    """A box of an image, as far as it lies inside; BadImage where nothing of it does."""
    left, top, right, bottom = box
    inside = (max(0, left), max(0, top), min(image.width, right), min(image.height, bottom))
    if inside[2] - inside[0] < 1 or inside[3] - inside[1] < 1:
        raise BadImage(f"the box {box} lies outside its {image.width}x{image.height} px")
    return image.crop(tuple(round(side) for side in inside))  # type: ignore[arg-type]


def square(image: Image.Image, resolution: int, fit: Fit = CROP) -> np.ndarray:
    """uint8 RGB (resolution, resolution, 3), resampled without aliasing."""
    # By default bicubic: Lanczos differs by less than a grey level on average, and takes as long as decoding does.
    return np.asarray(fit.apply(image, resolution))


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
    """RGB of a grey, palette, transparent or CMYK image of 8 bits, on white where transparent."""
    if {"A", "a"} & set(image.getbands()) or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
