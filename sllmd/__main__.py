"""``sllmd`` and ``python -m sllmd``."""

import sys

from sllmd import __version__


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"sllmd {__version__}\n")
        return
    try:
        from sllmd.cli.app import main as run_command_line  # noqa: PLC0415 - `--version` needs none of it

        run_command_line()
    except KeyboardInterrupt:  # before a command could take it, or once more while one ended
        sys.stderr.write("sllmd: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
