"""Write docs/commands.md from the help of all commands: python scripts/write_command_docs.py"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from viscoin.cli import app  # noqa: E402

PAGE = ROOT / "docs" / "commands.md"
HEAD = """# Commands

What `python main.py COMMAND --help` says, on one page, which `scripts/write_command_docs.py` writes. Once the package
is installed, `viscoin` and `python -m viscoin` are the same as `python main.py`.

Where an option names a model, a `.safetensors` file, a run folder and a pickle from `to-pickle` all work. Without it
the newest run of the dataset is used, else the shipped model. A mistake on the command line or in the data ends with
one line and exit code 2; something outside, such as a full disk, with 75; a signal with 128 + its number (Ctrl-C 130,
SIGTERM 143, a closed terminal 129). `--version` before a command prints the versions of viscoin and PyTorch.

A training and a sweep keep what the terminal showed, apart from progress bars, in `log.txt` of their folder. Where no
bar can be shown, a line after the first steps of long work says how long the rest takes. The last line of a long
command, on standard error, names what to open first.
"""


def page() -> str:
    """The whole page."""
    root = typer.main.get_command(app)
    return "\n".join([HEAD, *(section(name, command) for name, command in commands(root))])


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All commands below a group, by their words; the groups first."""
    for name, command in sorted(group.commands.items(), key=lambda item: not hasattr(item[1], "commands")):
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        elif not command.hidden:
            yield prefix + name, command


def section(name: str, command: Any) -> str:
    """What a command does, and a row for each argument and option."""
    context = command.make_context(name, [], resilient_parsing=True)
    records = [parameter.get_help_record(context) for parameter in command.params if parameter.name != "help"]
    pieces = command.collect_usage_pieces(context)
    arguments = " ".join(piece.strip("{}") for piece in pieces if piece != "[OPTIONS]")
    rows = [f"| {code(names)} | {cell(text)} |" for names, text in filter(None, records)]
    usage = f"python main.py {name} {arguments}".strip()
    lines = [f"## {name}", "", command.help.strip(), "", f"`{usage} [OPTIONS]`", ""]
    return "\n".join([*lines, "| | |", "|---|---|", *rows, ""])


def code(text: str) -> str:
    return f"`{cell(text.partition(' <')[0])}`"  # an argument is followed by its type


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
