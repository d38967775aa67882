"""The endpoints of `/api/v1` about trainings: runs, their curves and pictures, commands, jobs, recipes."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse
from fastapi.sse import format_sse_event

from viscoin.config import Recipe, load_recipe, recipe_names
from viscoin.runs.branch import branch, saved_steps
from viscoin.runs.control import Command, check_command, send
from viscoin.runs.run import Run
from viscoin.runs.status import read_status
from viscoin.runs.steer import check_penalty
from viscoin.serving import runs as reading
from viscoin.serving.api import service
from viscoin.serving.jobs import Job, Wish
from viscoin.serving.problems import Problem
from viscoin.serving.schemas import BranchBody, CommandBody, JobBody
from viscoin.slurm.submission import Limits

PAUSE, ALIVE = 0.2, 15.0  # seconds between two looks, and between two signs of life of a stream
LIVE = ("starting", "running", "paused", "silent")

router = APIRouter(tags=["runs"])


def run_of(request: Request, run: str) -> Run:
    """The run that a path names; a dependency, since an error within a stream would come after its 200."""
    return service(request).runs.find(run)


def may_write(request: Request) -> None:
    """Raise a problem where the service only shows."""
    if service(request).settings.read_only:
        raise Problem(403, "this service is read-only", "start it without `read_only`")


Found = Annotated[Run, Depends(run_of)]


@router.get("/runs")
def list_runs(request: Request, most: Annotated[int, Query(ge=1, le=1000)] = 200) -> list[dict[str, Any]]:
    """Jobs that wait, then all runs, those that live first and then the newest."""
    found = service(request)
    waiting, names = found.jobs.waiting() + found.jobs.unborn(), found.runs.names()[:most]
    failed = {row["run"]: row for row in found.jobs.failed()}
    waiting += [row for run, row in failed.items() if run not in names]
    queued = {row["run"] for row in waiting}
    rows = [_row(found.runs.find(name), failed) for name in names if name not in queued]
    return waiting + sorted(rows, key=lambda row: row["state"] not in LIVE)


def _row(run: Run, failed: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """A run, which is said to have failed where it could not go on when its turn came."""
    row, job = reading.describe(run), failed.get(run.path.name)
    return row if job is None or row["state"] in LIVE else {**row, "state": "failed", "reason": job["reason"]}


@router.get("/runs/latest")
def latest(request: Request) -> dict[str, Any]:
    """The run that was changed last."""
    return reading.describe(service(request).runs.newest())


@router.get("/runs/{run}")
def one_run(request: Request, found: Found) -> dict[str, Any]:
    """State of a run, its recipe, from where it branches, and the bounds of what can be set."""
    row = _row(found, {row["run"]: row for row in service(request).jobs.failed()})
    if row["state"] == "damaged":
        return row
    return {**row, "recipe": found.header["recipe"], "branch": found.header.get("branch"), "bounds": _bounds(row)}


def _bounds(row: dict[str, Any]) -> dict[str, Any]:
    """Type, range and help of each value that can be set."""
    from viscoin.serving.recipes import describe_recipe

    keys = set(row["steerable"] or ())
    rows = [entry for section in describe_recipe(Recipe()) for entry in section["keys"]] if keys else []
    return {entry["key"]: {k: v for k, v in entry.items() if k not in ("key", "value")} for entry in rows
            if entry["key"] in keys}  # fmt: skip


@router.get("/runs/{run}/metrics")
def metrics(
    found: Found, since: Annotated[int, Query(ge=0)] = 0, keys: Annotated[str | None, Query(max_length=2000)] = None,
    points: Annotated[int, Query(ge=10, le=reading.MOST_POINTS)] = 1000,
) -> dict[str, Any]:  # fmt: skip
    """Curves, thinned so that no spike is lost."""
    return reading.metrics(found, since, keys.split(",") if keys else None, points)


@router.get("/runs/{run}/summary")
def summary(found: Found) -> dict[str, Any]:
    """Best and last value of every measure."""
    return reading.summary(found)


@router.get("/runs/{run}/figures")
def figures(found: Found) -> list[dict[str, Any]]:
    """Pictures, each with its step."""
    return reading.figures(found)


@router.get("/runs/{run}/figures/{name}", response_class=FileResponse)
def figure(found: Found, name: str) -> FileResponse:
    """One of them."""
    return FileResponse(reading.figure(found, name), headers={"Cache-Control": "private, max-age=5"})


@router.get("/runs/{run}/log", response_class=PlainTextResponse)
def log(found: Found) -> PlainTextResponse:
    """The end of the log."""
    return PlainTextResponse(reading.log_end(found))


@router.get("/runs/{run}/commands")
def commands(found: Found) -> list[dict[str, Any]]:
    """The commands of a run: obeyed, refused and waiting."""
    return reading.record(found)


@router.post("/runs/{run}/commands", status_code=202, dependencies=[Depends(may_write)])
def command(found: Found, body: CommandBody) -> dict[str, str]:
    """Send a command; what became of it is in the record."""
    if reading.describe(found)["state"] not in LIVE:
        raise Problem(409, f"nothing trains in run {found.path.name}", "resume it first")
    if body.command == "penalty":
        check_penalty(found, read_status(found.path), body.values)
    return {"id": send(found.path, body.command, body.values, by="page").id}


@router.get("/runs/{run}/saved")
def saved(found: Found) -> list[int]:
    """The saved steps, from which a new training can start."""
    return list(saved_steps(found))


@router.post("/runs/{run}/branch", status_code=202, dependencies=[Depends(may_write)])
def branch_here(request: Request, found: Found, body: BranchBody) -> dict[str, Any]:
    """Start a new training from a saved step of this one, with its record up to there."""
    jobs, kind = service(request).jobs, str(found.header["kind"])
    for number, one in enumerate(body.commands):
        if one.command not in ("set", "note", "penalty"):
            raise Problem(422, f"commands: {one.command} is none for the start of a branch", "send it when it runs")
        check_command(Command(str(number), one.command, one.values))
    name = body.name or f"{found.path.name[:90]}-from-{body.step}-{time.strftime('%H%M%S')}"
    jobs.check_name(name)
    made = branch(found, body.step, jobs.root / name)
    for one in body.commands:
        send(made.path, one.command, one.values, by="page")
    return _started(jobs.resume(name, kind))


@router.post("/runs/{run}/resume", status_code=202, dependencies=[Depends(may_write)])
def resume(request: Request, found: Found) -> dict[str, Any]:
    """Go on with a training that was stopped or has failed."""
    row = reading.describe(found)
    if row["state"] not in ("stopped", "failed"):
        raise Problem(409, f"run {found.path.name} is {row['state']}", "only what was stopped or has failed goes on")
    return _started(service(request).jobs.resume(found.path.name, row["kind"]))


def _started(job: Job) -> dict[str, Any]:
    return {"run": job.run, "command": job.command}


@router.delete("/runs/{run}", dependencies=[Depends(may_write)])
def delete(request: Request, found: Found) -> dict[str, str]:
    """Move a run into `.trash`."""
    if reading.describe(found)["state"] in LIVE:
        raise Problem(409, f"something trains in run {found.path.name}", "stop it first")
    for model in service(request).models:
        if model.path.resolve().is_relative_to(found.path.resolve()):
            raise Problem(409, f"model {model.id} of this run is served")
    trash = service(request).runs.root / ".trash"
    trash.mkdir(exist_ok=True)
    place = trash / f"{found.path.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    shutil.move(found.path, place)
    return {"moved_to": f".trash/{place.name}"}


@router.get("/runs/{run}/events", response_class=Response)
def events(
    request: Request, found: Found, last_event_id: Annotated[int | None, Header()] = None,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> StreamingResponse:  # fmt: skip
    """Server-sent events `metrics`, `status`, `command`, `figure`, `rewritten`, and at the end `gone`.

    Ids are offsets, so none is lost or doubled. `gone`: the folder of the run was deleted, moved or renamed.
    """
    follower = reading.Follower(found, offset if last_event_id is None else last_event_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(request, follower), media_type="text/event-stream", headers=headers)


async def _stream(request: Request, follower: reading.Follower) -> AsyncIterator[bytes]:
    import json

    ending, said = service(request).ending, time.monotonic()
    yield format_sse_event(retry=1000)
    while not ending.is_set() and not await request.is_disconnected():
        for kind, number, values in await asyncio.to_thread(lambda: list(follower.fresh())):
            yield format_sse_event(data_str=json.dumps(values), event=kind, id=str(number))
            said = time.monotonic()
            if kind == "gone":
                return
        if time.monotonic() - said > ALIVE:
            yield format_sse_event(comment="alive")
            said = time.monotonic()
        await asyncio.sleep(PAUSE)


# --- trainings to be started -----------------------------------------------------------------------------------------


@router.post("/jobs", status_code=202, dependencies=[Depends(may_write)])
def add_job(request: Request, body: JobBody) -> dict[str, Any]:
    """Start a training, here when its turn comes or as a job of a SLURM cluster; or only check it."""
    if body.replay is not None:
        service(request).runs.find(body.replay)
    jobs = service(request).jobs
    wish = Wish(body.kind, body.dataset, body.recipe, body.settings, body.name, body.replay, body.devices)
    if body.where == "here":
        return _started(jobs.check(wish) if body.dry_run else jobs.add(wish))
    job = jobs.check(wish)
    submission = jobs.submission(job, Limits(**body.limits.model_dump()))
    if body.dry_run:
        return {**_started(job), "script": submission.job.script()}
    number = submission.submit()
    return {**_started(job), "job": number, "commands": submission.commands(number)}


@router.get("/jobs")
def list_jobs(request: Request) -> list[dict[str, Any]]:
    """Those that wait, here or on a cluster, and those that did not begin, with the reason."""
    jobs = service(request).jobs
    return jobs.waiting() + jobs.unborn() + jobs.failed()


@router.get("/recipes")
def recipes() -> list[str]:
    """Names of the recipes."""
    return recipe_names()


@router.get("/recipes/{name}")
def recipe(name: str) -> dict[str, Any]:
    """The keys of a recipe with their values, types, bounds and help."""
    from viscoin.serving.recipes import describe_recipe

    if name not in recipe_names():
        raise Problem(404, f"there is no recipe {name!r}", f"choose one of: {', '.join(recipe_names())}")
    return {"recipe": name, "sections": describe_recipe(load_recipe(name))}
