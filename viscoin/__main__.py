from viscoin.processes import open_missing_streams
from viscoin.signals import leave_on_signals


def main() -> None:
    """Entry point of `python main.py`, `python -m viscoin` and the `viscoin` command."""
    open_missing_streams()
    leave_on_signals()
    from viscoin.cli import main as run  # which takes a moment

    run()


if __name__ == "__main__":
    main()
