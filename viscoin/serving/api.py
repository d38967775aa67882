"""The endpoints of `/api/v1`: models, images, predictions, maps, edits."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile

from viscoin.analysis.concept_files import concept_rows, correlated, summary
from viscoin.analysis.concepts import ConceptTable, collect_concepts
from viscoin.analysis.gallery import view_concepts
from viscoin.attribution import METHODS
from viscoin.datasets import ImageDataset
from viscoin.serving import answers
from viscoin.serving.answers import Edit
from viscoin.serving.models import CONCEPT_IMAGES, ServedModel, once
from viscoin.serving.pictures import OF_DATASET, UPLOAD, Picture, data_url, of_dataset, png, with_parts
from viscoin.serving.problems import Problem
from viscoin.serving.schemas import AmplifyBody, ExplainBody, PredictBody
from viscoin.serving.state import Service
from viscoin.serving.work import compute
from viscoin.statistics.measures import auroc
from viscoin.testing.truth.attributes import RAREST

MOST_FILES = 16
ASCENDING = ("concept", "name", "class", "votes_for", "attribute")  # columns that are sorted from the first one on
ModelQuery = Annotated[str | None, Query(max_length=80, description="id of a model; default: the first one")]

router = APIRouter(tags=["models"])


def service(request: Request) -> Service:
    """All that a service holds."""
    found: Service = request.app.state.service
    return found


def find_picture(service: Service, model: ServedModel, number: str) -> Picture:
    """An upload or an image of the model's dataset, by its id.

    Raises:
        Problem: 404 where there is none, 422 for what is no id.
    """
    if UPLOAD.fullmatch(number):
        return service.uploads.find(number, model.resolution, model.fit)
    found = OF_DATASET.fullmatch(number)
    if found is None:
        raise Problem(422, f"{number!r} is no id of an image", "give that of an upload, or DATASET/SPLIT/INDEX")
    name, split, index = found.groups()
    if name != model.dataset_name:
        raise Problem(404, f"model {model.id} has images of {model.dataset_name}, not of {name!r}")
    return of_dataset(model.images(split), split, int(index))


# --- models and their images ---------------------------------------------------------------------------------------


@router.get("/models")
def list_models(request: Request) -> list[dict[str, Any]]:
    """The models that are served; the first one is what requests mean that name none."""
    service(request).models.get()
    return [model.about() for model in service(request).models]


@router.get("/models/{number}")
def one_model(request: Request, number: str) -> dict[str, Any]:
    """A model with its classes and its recipe."""
    model = service(request).models.get(number)
    return {**model.about(), "class_names": model.class_names, "recipe": model.metadata.get("recipe")}


@router.get("/methods")
def methods() -> list[dict[str, Any]]:
    """The methods of maps."""
    return answers.methods_of()


@router.get("/datasets")
def datasets(request: Request) -> list[dict[str, Any]]:
    """The datasets of the models, with the number of images of their splits."""
    service(request).models.get()
    found: dict[str, dict[str, Any]] = {}
    for model in service(request).models:
        if model.dataset_name not in found:
            splits = {split: len(model.images(split)) for split in ("validation", "test")}
            found[model.dataset_name] = {
                "dataset": model.dataset_name, "model": model.id, "classes": len(model.class_names), "images": splits,
                "resolution": model.resolution, "parts": list(model.images("test").part_names),
            }  # fmt: skip
    return list(found.values())


@router.get("/datasets/{name}/{split}")
def images_of_split(
    request: Request, name: str, split: str, model: ModelQuery = None, start: Annotated[int, Query(ge=0)] = 0,
    count: Annotated[int, Query(ge=1, le=200)] = 48, label: Annotated[int | None, Query(ge=0)] = None,
) -> dict[str, Any]:  # fmt: skip
    """Images of a split, page by page: ids and labels."""
    images = _split(service(request).models.get(model), name, split)
    rows = [i for i in range(len(images)) if label is None or int(images.labels[i]) == label]
    return {
        "dataset": name, "split": split, "images": len(rows), "start": start,
        "counts": np.bincount(images.labels, minlength=len(images.class_names)).tolist(),
        "rows": [
            {"image": f"{name}/{split}/{i}", "class": int(label), "name": images.class_names[label]}
            for i, label in zip(rows[start : start + count], images.labels[rows[start : start + count]])
        ],
    }  # fmt: skip


@router.get("/datasets/{name}/{split}/{index}.png", response_class=Response)
def picture_of_split(
    request: Request, name: str, split: str, index: int, model: ModelQuery = None,
    delete: Annotated[str | None, Query(max_length=40, description="a part to draw the scene without")] = None,
    parts: Annotated[bool, Query(description="tint its parts, where the data knows them")] = False,
) -> Response:  # fmt: skip
    """An image of a dataset; of birds also without a part."""
    images = _split(service(request).models.get(model), name, split)
    pixels = of_dataset(images, split, index).pixels if delete is None else _without(images, index, delete)
    pixels = with_parts(images, index, pixels) if parts else pixels
    return Response(png(pixels), media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


def _split(model: ServedModel, name: str, split: str) -> Any:
    if name != model.dataset_name or split not in ("train", "validation", "test"):
        raise Problem(404, f"model {model.id} has no images of {name}/{split}", "see GET datasets")
    return model.images(split)


def _without(images: Any, index: int, part: str) -> Any:
    from viscoin.datasets.birds import delete_part, render
    from viscoin.datasets.birds.dataset import BirdsDataset
    from viscoin.datasets.birds.scene import REMOVABLE

    if not isinstance(images, BirdsDataset):
        raise Problem(404, f"parts of {images.name} cannot be deleted")
    if part not in REMOVABLE:
        raise Problem(422, f"there is no part {part!r} to delete", f"choose one of: {', '.join(REMOVABLE)}")
    if not 0 <= index < len(images):
        raise Problem(404, f"there is no image {index}")
    bird, scene, _ = images.item(index)
    return render(bird, delete_part(scene, part), images.resolution)[0]


@router.post("/images")
async def upload(
    request: Request,
    file: Annotated[list[UploadFile], File(description="JPEG, PNG, WebP or BMP; at most 16")],
    model: Annotated[str | None, Form(max_length=80)] = None,
) -> list[dict[str, Any]]:
    """Upload images, to be asked about by their ids."""
    served = service(request).models.get(model)
    pictures = await _read(request, served, file)
    return [{"image": picture.id, "picture": data_url(picture.pixels)} for picture in pictures]


async def _read(request: Request, model: ServedModel, files: list[UploadFile]) -> list[Picture]:
    from starlette.concurrency import run_in_threadpool

    if len(files) > MOST_FILES:
        raise Problem(413, f"{len(files)} files, and at most {MOST_FILES} are taken at once")
    found = []
    for number, file in enumerate(files):
        content = await file.read()
        uploads = service(request).uploads
        found.append(await run_in_threadpool(uploads.add, content, f"file {number + 1}", model.resolution, model.fit))
    return found


# --- predictions, edits, maps ----------------------------------------------------------------------------------------


@router.post("/predict")
async def predict(request: Request, body: PredictBody) -> dict[str, Any]:
    """What f and g say of an image, and the concepts that matter."""
    model = service(request).models.get(body.model)
    return (await _predicted(request, model, [find_picture(service(request), model, body.image)], body.top))[0]


@router.post("/predict/files")
async def predict_files(
    request: Request,
    file: Annotated[list[UploadFile], File(description="JPEG, PNG, WebP or BMP; at most 16")],
    model: Annotated[str | None, Form(max_length=80)] = None,
    top: Annotated[int, Form(ge=1, le=50)] = 6,
) -> list[dict[str, Any]]:
    """The same of images that come with the request."""
    served = service(request).models.get(model)
    return await _predicted(request, served, await _read(request, served, file), top)


async def _predicted(request: Request, model: ServedModel, pictures: list[Picture], count: int) -> list[dict[str, Any]]:
    def run(items: Any) -> Any:
        return answers.predict(model, items, count)

    return await compute(request, service(request).quick, ("predict", model.id, count), run, pictures)


@router.post("/amplify")
async def amplify(request: Request, body: AmplifyBody) -> Any:
    """The image with concepts turned up or down, what f and g say of it, and whether that can be believed."""
    model = service(request).models.get(body.model)
    answers.check_edit(model, body.factors, body.values)
    edit = Edit(find_picture(service(request), model, body.image), body.factors, body.values)

    def run(items: Any) -> Any:
        return answers.amplify(model, items)

    found = (await compute(request, service(request).quick, ("amplify", model.id), run, [edit]))[0]
    return _as_wished(request, found, found["picture"])


@router.post("/explain")
async def explain(request: Request, body: ExplainBody) -> Any:
    """Where the image speaks for classes or concepts."""
    model = service(request).models.get(body.model)
    _check_question(model, body)
    picture = find_picture(service(request), model, body.image)

    def run(items: Any) -> Any:
        return [answers.maps(model, *item) for item in items]

    engine = service(request).quick if answers.is_quick(body.method) else service(request).slow
    item = (picture, body.method, body.classes, body.concepts, body.against)
    found = (await compute(request, engine, ("explain", model.id, body.method), run, [item]))[0]
    return _as_wished(request, found, found["maps"][0]["picture"])


def _check_question(model: ServedModel, body: ExplainBody) -> None:
    if body.method not in METHODS or "training" in METHODS[body.method].needs:
        raise Problem(422, f"there is no method {body.method!r}", "see GET methods")
    if body.concepts is not None and (body.classes is not None or body.against is not None):
        raise Problem(422, "concepts and classes are asked about one at a time", "omit one of them")
    for name, chosen, count in (
        ("classes", body.classes, len(model.class_names)),
        ("against", None if body.against is None else [body.against], len(model.class_names)),
        ("concepts", body.concepts, model.needed_ensemble().n_concepts if body.concepts is not None else 0),
    ):
        for k in chosen or ():
            if k >= count:
                raise Problem(422, f"{name}: {k} is out of range", f"give 0 to {count - 1}")


def _as_wished(request: Request, found: Mapping[str, Any], picture: str) -> Any:
    """JSON, or the picture alone for who accepts image/png."""
    import base64

    if request.headers.get("accept", "").split(",")[0].strip() == "image/png":
        return Response(base64.b64decode(picture.partition(",")[2]), media_type="image/png")
    return found


# --- concepts ------------------------------------------------------------------------------------------------------


@router.get("/concepts")
async def concepts(
    request: Request, model: ModelQuery = None, sort: Annotated[str, Query(max_length=40)] = "importance",
    start: Annotated[int, Query(ge=0)] = 0, count: Annotated[int, Query(ge=1, le=500)] = 100,
) -> dict[str, Any]:  # fmt: skip
    """The table of concepts over test images, sorted and page by page."""
    served = service(request).models.get(model)
    served.needed_ensemble()
    rows, about = (await _slowly(request, served, "table", lambda: _table(served)))[1:]
    if sort not in rows[0]:
        raise Problem(422, f"concepts cannot be sorted by {sort!r}", f"choose one of: {', '.join(rows[0])}")
    known = [i for i, row in enumerate(rows) if row[sort] is not None]
    order = sorted(known, key=lambda i: rows[i][sort], reverse=sort not in ASCENDING)
    order += [i for i, row in enumerate(rows) if row[sort] is None]
    return {"model": served.id, "summary": about, "rows": [rows[i] for i in order[start : start + count]]}


def _table(model: ServedModel) -> Any:
    def made() -> Any:
        found = collect_concepts(model.needed_ensemble(), model.images("test"), model.device, limit=CONCEPT_IMAGES)
        known = _attributes(model.images("test"), found)
        rows = concept_rows(found, model.class_names, {k: model.name_of(k) for k in model.names})
        return found, [row | _grades(model, known, row["concept"]) for row in rows], summary(found)

    return once(model, "table", made)


def _grades(model: ServedModel, truth: Mapping[int, tuple[str, float]], k: int) -> dict[str, Any]:
    """How well a concept's name fits held-out images, and the attribute of the data that it tells best."""
    attribute, area = truth.get(k, (None, None))
    return {"grade": model.grades.get(k), "attribute": attribute, "attribute_auroc": area}


def _attributes(images: ImageDataset, table: ConceptTable) -> dict[int, tuple[str, float]]:
    """Of each concept that is ever active, the attribute that it detects best, with the AUROC; none without truth."""
    if not len(images.attribute_names):
        return {}
    truth = images.attributes[table.indices]
    often = np.flatnonzero(np.minimum(truth.mean(0), 1 - truth.mean(0)) >= RAREST)
    if not len(often):
        return {}
    areas = auroc(table.activations, truth[:, often])
    best = areas.argmax(0)
    return {
        int(k): (str(images.attribute_names[often[best[k]]]), float(areas[best[k], k]))
        for k in np.flatnonzero(~table.dead)
    }


async def _slowly(request: Request, model: ServedModel, name: str, make: Callable[[], Any]) -> Any:
    """What takes long the first time, by the slow engine."""

    def run(items: Sequence[Any]) -> list[Any]:
        return [make() for _ in items]

    return (await compute(request, service(request).slow, (name, model.id), run, [0]))[0]


@router.get("/concepts/{k}")
async def concept(request: Request, k: int, model: ModelQuery = None) -> dict[str, Any]:
    """One concept: its examples, the strip of its amplification, the classes it speaks for and against."""
    served = service(request).models.get(model)
    count = served.needed_ensemble().n_concepts
    if not 0 <= k < count:
        raise Problem(404, f"there is no concept {k}", f"concepts are 0 to {count - 1}")
    return await _slowly(
        request, served, f"concept {k}", lambda: once(served, f"concept_{k}", lambda: _concept(served, k))
    )


def _concept(model: ServedModel, k: int) -> dict[str, Any]:
    table, rows, _ = _table(model)
    weights = table.weight[:, k]
    order = weights.argsort()
    named = [
        {"class": int(c), "name": model.class_names[c], "weight": float(weights[c])}
        for c in (*order[:-6:-1], *order[:5])
    ]
    similar = [{"concept": other, "name": model.name_of(other), "correlation": r} for other, r in correlated(table, k)]
    found = {
        "row": rows[k], "classes": named, "opposite": model.opposites[k], "similar": similar, "examples": [],
        "strip": [],
    }  # fmt: skip
    if table.dead[k]:
        return found
    images = model.images("test")
    view = view_concepts(model.needed_ensemble(), images, table, [k], device=model.device)[k]
    for example in view.examples:
        index = int(table.indices[example.row])
        found["examples"].append({
            "image": f"{model.dataset_name}/test/{index}", "picture": data_url(images.pixels[index]),
            "activation": example.activation, "crop": list(example.crop),
        })  # fmt: skip
    for factor, pixels in zip(view.factors, view.strip):
        found["strip"].append({"factor": float(factor), "picture": data_url(pixels)})
    return found
