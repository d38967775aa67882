"""Masks of the images of a folder or zip: files in a folder `masks/`, or their own alpha channel.

    birds/crow/1.jpg, birds/crow/2.jpg, birds/gull/...
    birds/masks/crow/1.png, ...      the same names below `masks`, of any image format, of the size of the image

A mask is where values are above half of their maximum, where an alpha channel is above half of opaque, or where a
palette's index is not 0. It is fitted into its square as its image is.
"""

import posixpath
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from viscoin.datasets.base import ImageDataset
from viscoin.datasets.reading import UNREADABLE, BadImage, Box, ImageFile, cut, square_around
from viscoin.errors import Refused, reason_of

FOLDER = "masks"
PART = "object"
MARGIN = 0.05  # around an object, of its longer side
TURNED = 5  # EXIF orientations from this one on swap width and height


def split_masks(images: Mapping[str, ImageFile]) -> tuple[dict[str, ImageFile], dict[str, ImageFile]]:
    """The images without those in a folder `masks` that has the folders of the others in it, and these by their names.

    A folder `masks` with images directly in it, or with folders of other names, is a class like all others. Names of
    masks are those of their images without suffix.
    """
    inside = {name: file for name, file in images.items() if name.startswith(f"{FOLDER}/")}
    others = {name: file for name, file in images.items() if name not in inside}
    tops = {name.partition("/")[0] for name in others}
    names = [name.removeprefix(f"{FOLDER}/").split("/") for name in inside]
    if not inside or not all(len(parts) > 1 and parts[0] in tops for parts in names):
        return dict(images), {}
    return others, {stem(name.removeprefix(f"{FOLDER}/")): file for name, file in inside.items()}


def stem(name: str) -> str:
    """The name of a file with its folders and without its suffix."""
    return posixpath.splitext(name)[0]


class MaskedDataset(ImageDataset):
    """Images of files, each with the mask of the object that it shows.

    Args:
        images: the file of each image.
        masks: the file of each mask, None where there is none; None: the alpha channels of the images.
    """

    part_names = (PART,)

    def __init__(
        self,
        *data: Any,
        images: Sequence[ImageFile],
        masks: Sequence[ImageFile | None] | None,
        **more: Any,
    ) -> None:
        super().__init__(*data, **more)
        self._images, self._masks = list(images), masks

    def part_masks(self, index: int) -> np.ndarray:
        """The object's mask (1, H, W) bool.

        Raises:
            Refused: images of this split have no mask, one of another size, or one that cannot be read.
        """
        mask = read_mask(self._checked[index])
        whole = Image.fromarray(mask.astype(np.uint8) * 255)
        if self.fit.mode == "object" and (box := box_of(mask)) is not None:
            whole = cut(whole, box)
        return np.asarray(self.fit.apply(whole, self.resolution, Image.Resampling.BOX, 0))[None] > 127

    def object_box(self, index: int) -> Box | None:
        if self.fit.mode != "object":
            return None
        return object_box(self._images[index], None if self._masks is None else self._masks[index])

    def lost_share(self, index: int) -> float:
        """Share of the object's pixels in its file that lie outside of the square; errors as `part_masks`."""
        mask = read_mask(self._checked[index])
        if self.fit.mode == "object" or not mask.any():
            return 0.0
        left, top, right, bottom = self.fit.visible((mask.shape[1], mask.shape[0]), self.resolution)
        inside = mask[round(top) : round(bottom), round(left) : round(right)]
        return 1 - int(inside.sum()) / int(mask.sum())

    @cached_property
    def _checked(self) -> Sequence[ImageFile]:
        """The file of each mask, after a look at all of them."""
        if self._masks is None:
            self._refuse([file for file in self._images if not has_alpha(file)], "have no alpha channel", "add it")
            return self._images
        pairs = list(zip(self._images, self._masks, strict=True))
        missing = [image for image, mask in pairs if mask is None]
        self._refuse(missing, f"have no mask of the same name in {FOLDER}/", f"add them, or remove {FOLDER}/")
        found = [mask for mask in self._masks if mask is not None]
        sizes = [(mask, _size(image), _size(mask)) for image, mask in zip(self._images, found, strict=True)]
        wrong = [f"{mask}, {_by(own)} for {_by(image)}" for mask, image, own in sizes if own and image and own != image]
        self._refuse(wrong, "have masks of another size", "make masks of the size of their images")
        return found

    def _refuse(self, wrong: Sequence[object], what: str, remedy: str) -> None:
        if wrong:
            count = f"{len(wrong)} of {len(self)} {self.split} images of {self.name}"
            raise Refused(None, None, f"{count} {what} (first: {wrong[0]})", remedy)


def object_box(image: ImageFile, mask: ImageFile | None = None) -> Box | None:
    """The square around the object of an image, with a margin, as far as the image reaches.

    Args:
        mask: its mask; None: its alpha channel.

    Returns:
        left, top, right and bottom, whole pixels of the upright image; None where nothing is masked.

    Raises:
        BadImage: a mask that cannot be read, or of another size.
    """
    if mask is None and not has_alpha(image):
        return None
    try:
        found = read_mask(image if mask is None else mask)
    except Refused as error:
        raise BadImage(str(error)) from error
    size, own = _size(image), (found.shape[1], found.shape[0])
    if size is not None and size != own:
        raise BadImage(f"{_by(size)}, but its mask {mask} is {_by(own)}; make it again")
    return box_of(found)


def box_of(mask: np.ndarray) -> Box | None:
    """The square around what is true in a mask (h, w), with a margin, as far as the image reaches; None if nothing."""
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    margin = MARGIN * max(right - left, bottom - top)
    box = (float(left - margin), float(top - margin), float(right + margin), float(bottom + margin))
    return square_around(box, (mask.shape[1], mask.shape[0]))


def masks_of(
    names: Sequence[str], images: Sequence[ImageFile], masks: Mapping[str, ImageFile]
) -> tuple[bool, list[ImageFile | None] | None]:
    """Whether images have masks, and the files of these as `MaskedDataset` takes them.

    Args:
        names: of the images in their folder or zip.
        masks: of `split_masks`.
    """
    if masks:
        return True, [masks.get(stem(name)) for name in names]
    return bool(images) and has_alpha(images[0]), None


def has_alpha(file: ImageFile) -> bool:
    """Whether an image file has an alpha channel, or is a PNG with a transparent colour, from its header alone."""
    try:
        with file.open("rb") as stream, Image.open(stream) as image:
            return "A" in image.getbands() or (image.format == "PNG" and "transparency" in image.info)
    except UNREADABLE:
        return False


def read_mask(file: ImageFile) -> np.ndarray:
    """The mask (h, w) bool of a file, upright, at its own size; Refused if it cannot be read."""
    try:
        with file.open("rb") as stream, Image.open(stream) as image:
            upright = ImageOps.exif_transpose(image)
            if "A" in upright.getbands():
                return np.asarray(upright.getchannel("A")) > 127
            if image.format == "PNG" and "transparency" in image.info:
                return np.asarray(upright.convert("RGBA").getchannel("A")) > 127
            values = np.asarray(upright)
            if upright.mode == "P":
                return values > 0
    except UNREADABLE as error:
        raise Refused(None, None, f"{file} is no readable mask ({reason_of(error)})", "make it again") from error
    values = values.max(2) if values.ndim == 3 else values
    return np.asarray(values > values.max() / 2)


def _size(file: ImageFile) -> tuple[int, int] | None:
    """Width and height of an upright image; None if it cannot be read, which reading it will report."""
    try:
        with file.open("rb") as stream, Image.open(stream) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= TURNED
            return (image.height, image.width) if turned else image.size
    except UNREADABLE:
        return None


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} px"
