"""What people mark on images: checked against the images of a training, and kept in its run for penalties to name."""

import json
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Depends, Request

from viscoin.datasets import ImageDataset
from viscoin.penalties import KINDS
from viscoin.runs.kept import FOLDER, keep_content, kept_name
from viscoin.runs.run import Run
from viscoin.serving import runs as reading
from viscoin.serving.api import service
from viscoin.serving.problems import Problem
from viscoin.serving.schemas import MarksBody
from viscoin.serving.watching import LIVE, Found, may_write
from viscoin.training.regions import Mark, read_marks

LARGEST, MOST_KEPT = 2 * 2**20, 32  # of a file, bytes; files of a run

router = APIRouter(tags=["runs"])


@router.post("/runs/{run}/marks", status_code=201, dependencies=[Depends(may_write)])
def keep_marks(request: Request, found: Found, body: MarksBody) -> dict[str, Any]:
    """Keep marked images in a training that runs; `region` of the answer is what a penalty there calls them."""
    if reading.describe(found)["state"] not in LIVE:
        raise Problem(409, f"nothing trains in run {found.path.name}", "resume it first")
    if found.kind not in KINDS:
        raise Problem(409, f"a training of kind {found.kind} has no penalties", f"{' and '.join(KINDS)} have")
    content = _content(body)
    train, validation = _images(request, found)
    try:
        marks = read_marks(json.loads(content), train, validation)
    except ValueError as error:
        raise Problem(422, str(error), "see /docs for what is expected") from None
    for split, index in _empty(marks, train.resolution):
        raise Problem(422, f"{split} image {index}: what is marked covers no pixel", "mark more of it, or leave it out")
    return {"region": _kept(found, content), **{split: len(marks.get(split, {})) for split in ("train", "validation")}}


def _content(body: MarksBody) -> bytes:
    splits = body.model_dump(mode="json", exclude_none=True)
    content = json.dumps({split: marks for split, marks in splits.items() if marks}, sort_keys=True).encode()
    if len(content) > LARGEST:
        raise Problem(
            413, f"these marks take {len(content)} bytes, and at most {LARGEST} are kept", "mark fewer images"
        )
    return content


def _images(request: Request, run: Run) -> tuple[ImageDataset, ImageDataset]:
    """Training and validation images of a run, of a served model that has the very same ones."""
    service(request).models.get()  # or it says that they are still loaded
    config = run.recipe.dataset
    model = next((model for model in service(request).models if model.config == config), None)
    if model is None:
        raise Problem(
            409, f"no model that is served has the images of run {run.path.name}, so the marks may mean others",
            "write them into a file, and send it by the command control",
        )  # fmt: skip
    return model.images("train"), model.images("validation")


def _empty(marks: dict[str, dict[int, Mark]], side: int) -> Iterator[tuple[str, int]]:
    """Marked images of which not even the middle of one pixel is covered."""
    for split, some in marks.items():
        yield from ((split, index) for index, mark in some.items() if not mark.draw(side).any())


def _kept(run: Run, content: bytes) -> str:
    folder = run.path / FOLDER
    if folder.is_symlink():
        raise Problem(409, f"{FOLDER} of run {run.path.name} is no folder of its own", "remove that link")
    new = not (run.path / kept_name(content, ".json")).exists()
    if new and folder.is_dir() and sum(1 for _ in folder.iterdir()) >= MOST_KEPT:
        raise Problem(409, f"run {run.path.name} keeps {MOST_KEPT} files of regions already", "start another training")
    return keep_content(run.path, content, ".json")
