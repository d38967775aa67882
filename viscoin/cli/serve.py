"""`serve`: models, runs and pages over HTTP."""

import os
from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli import options
from viscoin.errors import Refused

TOKEN = "VISCOIN_TOKEN"


def serve(
    viscoin: Annotated[
        list[Path] | None,
        typer.Option("--viscoin", metavar="MODEL", help=f"{options.VISCOIN_HELP} Repeatable, at most 3 models in all."),
    ] = None,
    classifier: Annotated[
        list[Path] | None,
        typer.Option("--classifier", metavar="MODEL", help="A classifier f to serve, without concepts; repeatable."),
    ] = None,
    concept_names: Annotated[
        list[Path] | None,
        typer.Option(
            "--concept-names",
            metavar="FILE",
            help="names.csv of concepts --names, to label concepts; repeatable, in the order of --viscoin.",
        ),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Folder of the runs to show.")] = Path("runs"),
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port; 0: any that is free.")
    ] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="A name under which the service may be asked; repeatable."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help="File with the token; default: VISCOIN_TOKEN, or a new one."),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Let every program of this machine ask; only on loopback.")
    ] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Show, but start and steer no trainings.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, metavar="N", help="Trainings at a time.")] = 1,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", metavar="FOLDER", help="Where datasets of trainings must lie; default: here."),
    ] = None,
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="PATH", help="Path under which a proxy shows the service.")
    ] = "",
    device: options.Device = "auto",
) -> None:
    """Serve models, runs and live pages over HTTP.

    Concepts with sliders, maps, predictions, and trainings to watch and steer, in a browser or by the API.
    """
    token = _token(token_file, no_token)
    load_service()
    from viscoin.serving.server import serve as run
    from viscoin.serving.state import Settings

    _check_files(viscoin or [], classifier or [], concept_names or [])
    models = [("viscoin", path) for path in viscoin or ()] + [("classifier", path) for path in classifier or ()]
    settings = Settings(
        models or [("viscoin", None)], runs, device, read_only, token, allow_host or (), jobs, data_root,
        concept_names or (),
    )  # fmt: skip
    try:
        run(settings, host, port, prefix)
    except KeyboardInterrupt:  # how a service ends
        return


def _check_files(viscoin: list[Path], classifier: list[Path], names: list[Path]) -> None:
    """Raise Refused for files that are not there, and for names of no ensemble, before anything is loaded."""
    for parameter, paths in (("viscoin", viscoin), ("classifier", classifier), ("concept_names", names)):
        for path in paths:
            if not path.exists():
                raise Refused(parameter, path, "there is no such file", "give one that is there")
    if len(names) > (len(viscoin) or not classifier):
        raise Refused("concept_names", names[-1], "there is no ensemble for it", "give one file for each `viscoin`")


def load_service() -> None:
    """Import the packages of the service.

    Raises:
        Refused: they are not installed.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise Refused(
            None, None, f"the service needs the package {error.name}", "install it by: pip install viscoin[app]"
        ) from error


def _token(file: Path | None, without: bool) -> str | None:
    """The token of a file, of the environment, or a new one."""
    if without:
        if file is not None:
            raise Refused("token_file", file, "does not go with `no_token`", "omit one of them")
        return None
    if file is None:
        from viscoin.serving.security import new_token

        return os.environ.get(TOKEN) or new_token()
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise Refused("token_file", file, "cannot be read", "give a file of one line") from error
    if len(token) < 16 or not token.isascii() or any(map(str.isspace, token)):
        raise Refused("token_file", file, "its token is no word of at least 16 characters", "write a longer one")
    return token
