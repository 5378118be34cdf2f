"""The command line, ``python -m lmkan_cupy info | fit | predict``: it only dispatches."""

import argparse
import sys


def main() -> int:
    """Run the sub-command that the arguments name; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lmkan_cupy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, engines, threads, and what is missing")
    parser.parse_args()

    from .configuration import show_config

    show_config()
    return 0


if __name__ == "__main__":
    sys.exit(main())
