"""``sllmd`` and ``python -m sllmd``."""

import sys

from sllmd import __version__


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"sllmd {__version__}\n")
        return
    from sllmd.cli.app import main as run_command_line  # noqa: PLC0415 - `--version` needs none of it

    run_command_line()


if __name__ == "__main__":
    main()
