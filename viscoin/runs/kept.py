"""Files that a training needs again whenever it is repeated, kept in its run folder under their digest."""

import hashlib
import shutil
from pathlib import Path, PurePosixPath

from viscoin.errors import Refused, reason_of, regular
from viscoin.files import atomic_path
from viscoin.runs.run import Run

FOLDER = "regions"
LARGEST = 16 * 2**20  # bytes


def keep_file(run: Path, file: Path) -> str:
    """Copy a file into a run folder; returns its path in there, as in "regions/0f3a….json".

    Raises:
        Refused: it cannot be read, is too large, or the folder cannot be written.
    """
    try:
        if regular(file).stat().st_size > LARGEST:
            raise Refused("region", file, f"it has more than {LARGEST >> 20} MB", "give a smaller one")
        content = file.read_bytes()
    except OSError as error:
        raise Refused("region", file, f"it cannot be read ({reason_of(error)})", "give a file that is there") from error
    return keep_content(run, content, file.suffix.lower())


def keep_content(run: Path, content: bytes, suffix: str) -> str:
    """Keep the content of a file in a run folder; returns its path in there.

    Raises:
        Refused: the folder cannot be written.
    """
    name = kept_name(content, suffix)
    if not (run / name).is_file():
        try:
            (run / FOLDER).mkdir(exist_ok=True)
            with atomic_path(run / name) as partial:
                partial.write_bytes(content)
        except OSError as error:
            raise Refused("run", run, f"cannot write there ({reason_of(error)})") from error
    return name


def kept_name(content: bytes, suffix: str) -> str:
    """Where in a run folder some content is kept."""
    return f"{FOLDER}/{hashlib.sha256(content).hexdigest()[:16]}{suffix}"


def kept_path(run: Run, region: str, new: bool) -> Path:
    """Where the file of a region is kept in a run.

    Args:
        new: copy it where that was not done yet, as of a recipe, whose run begins.

    Raises:
        Refused: there is no such file.
    """
    path = PurePosixPath(region)
    if len(path.parts) == 2 and path.parts[0] == FOLDER:
        if not (run.path / path).is_file():
            raise Refused("region", region, f"{run.path} holds no such file", "send it by the command `control`")
        return run.path / path
    known = run.header.get(FOLDER, {})
    if region not in known and not new:  # whoever sends commands shall not have files of this machine read
        raise Refused(
            "region", region, "the run keeps no such file", "send it by the command `control`, which copies it"
        )
    if region not in known:
        known = {**known, region: keep_file(run.path, Path(region))}
        run.annotate(**{FOLDER: known})
    return run.path / known[region]


def copy_kept(source: Path, run: Path) -> None:
    """Give a run the files that another one keeps."""
    for file in sorted((source / FOLDER).glob("*")):
        (run / FOLDER).mkdir(exist_ok=True)
        with atomic_path(run / FOLDER / file.name) as partial:
            shutil.copyfile(file, partial)
