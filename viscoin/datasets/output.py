"""Folders that appear under their name when they are complete, never in part, and never in the place of other work."""

import io
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from viscoin.errors import Refused
from viscoin.files import clear_partials, end_of_links, partial_path, writing

COMPRESSION = 1  # of zlib; more takes twice as long and saves a tenth


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `output` when the block ends well and vanishes otherwise.

    A link stays, and the folder it leads to is replaced. What killed processes have left of it is cleared away.

    Raises:
        OSError: it cannot be written; names `output` where the disk is full.
    """
    output = end_of_links(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    clear_partials(output.parent, output.name)
    partial, old = partial_path(output), output.with_name(f".{output.name}.{uuid.uuid4().hex}.old")
    try:
        with writing(output, partial):
            partial.mkdir()
            yield partial
            if output.exists():
                output.rename(old)
            partial.rename(output)
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


def check_output(out: Path, source: Path | None, force: bool, marker: str) -> None:
    """Raise Refused unless a zip or folder may be written.

    Args:
        source: folder or zip that is read, which must be left alone; None for none.
        force: whether an output may be replaced, if it is a zip or a folder that holds the file `marker`.
    """
    is_zip = out.suffix.lower() == ".zip"
    if source is not None:
        target, origin = out.resolve(), source.resolve()
        if origin.is_relative_to(target) or (not is_zip and target.is_relative_to(origin)):
            raise Refused("out", out, f"lies in the source {source} or around it", "choose another path")
    if not out.exists():
        return
    if out.is_dir() == is_zip:
        raise Refused("out", out, "a folder cannot replace a file, nor the reverse", "choose another name")
    if out.is_dir() and not any(out.iterdir()):
        return
    if not force:
        raise Refused("out", out, "exists", "pass `force` to replace it or choose another name")
    if out.is_dir() and not (out / marker).is_file():
        raise Refused("out", out, f"`force` replaces datasets only, and this folder has no {marker}")


def png_bytes(image: Image.Image) -> bytes:
    """The image as a PNG file in memory."""
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=COMPRESSION)
    return buffer.getvalue()
