"""The command line, ``python -m lmkan_cupy info | fit | predict``: it only calls the commands."""

import argparse
import io
import os
import sys
from pathlib import Path
from typing import Any

from .array_checks import COMPUTE_DTYPE


def main() -> int:
    """Run the sub-command that the arguments name; return the exit code."""
    arguments = vars(_parser().parse_args())
    if isinstance(sys.stdout, io.TextIOWrapper):  # in UTF-8 as files are, whatever the locale
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = _run(arguments.pop("command"), arguments)
        print(end="", flush=True)
        return code
    except KeyboardInterrupt:
        _fail("interrupted before there was a result; nothing was written")
        return 130
    except OSError as error:
        # Python flushes standard output once more when it ends, and that must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141  # as any program that writes to `head` when that has seen enough
        return _fail(str(error))


def _run(command: str, arguments: dict[str, Any]) -> int:
    if command == "info":
        if (sizes := arguments["plan"]) is None:
            from .configuration import show_config

            show_config()
            return 0
        if len(sizes) < 4:
            return _fail(f"--plan needs at least 4 numbers, I O G B, got {len(sizes)}")
        from .cuda_engine.show_plan import show_plan

        *features, num_grids, batch = sizes
        try:
            show_plan(features, num_grids, batch, table_dtype=arguments["dtype"])
        except ValueError as error:
            return _fail(str(error))
        return 0
    try:
        from .adapters import fitting
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        return _fail(f"{command} needs {package}: pip install 'lmkan-cupy[fit]'")
    except (ImportError, OSError) as error:
        return _fail(f"{command} needs a package that is installed but cannot be loaded: {error}")
    try:
        return (fitting.run_fit if command == "fit" else fitting.run_predict)(**arguments)
    except fitting.InputError as error:
        return _fail(str(error))


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lmkan_cupy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="versions, engines, threads, and what is missing")
    info.add_argument(
        "--plan",
        nargs="+",
        type=int,
        metavar=("I O G B", "N"),
        help="show instead how a GPU computes the forward of a layer of I inputs, O outputs and "
        "G grid intervals for B samples, and the predicted time; with further widths between I "
        "and O that of a network",
    )
    info.add_argument(
        "--dtype",
        choices=COMPUTE_DTYPE,
        default="float32",
        help="dtype of the tables, for --plan; default: %(default)s",
    )

    fit = commands.add_parser(
        "fit",
        help="fit a network of lmKAN layers to a table of numbers",
        description="Fit a network of lmKAN layers to a table, and an MLP of equal inference FLOPs "
        "beside it; write the model, metrics.json and pictures. Exit code: 0; 2 for a wrong "
        "argument or file; 130 after Ctrl-C, SIGTERM or SIGHUP, which keep the best model so far.",
    )
    fit.add_argument(
        "path",
        nargs="?",
        type=Path,
        metavar="DATA",
        help=".csv or .parquet: all columns but the target are features; .npz: arrays 'features' "
        "[rows, columns] and targets [rows], optionally 'feature_names'; default: the bundled "
        "methane sample",
    )
    fit.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="NAME",
        help="default: the last column, or the last array [rows]",
    )
    fit.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="NAME",
        help="a column to leave out, such as a number of the row; for several, once for each",
    )
    fit.add_argument("--width", type=int, default=32, metavar="N", help="default: %(default)s")
    fit.add_argument("--layers", type=int, default=3, metavar="N", help="default: %(default)s")
    fit.add_argument("--num-grids", type=int, default=8, metavar="N", help="default: %(default)s")
    fit.add_argument(
        "--epochs", type=int, metavar="N", help="default: as many as make about 10,000 steps"
    )
    fit.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    fit.add_argument("--device", default="cpu", metavar="D", help="only cpu, the default")
    fit.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="a new or empty folder; default: lmkan_fit, or lmkan_fit-2, ... where that exists",
    )
    fit.add_argument(
        "--no-baseline", action="store_false", dest="baseline", help="do not train the MLP"
    )

    predict = commands.add_parser("predict", help="predict the target for the rows of a table")
    predict.add_argument("model", type=Path, metavar="MODEL", help="a folder that fit wrote")
    predict.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="a table with the model's features, as for fit; other columns are ignored",
    )
    predict.add_argument(
        "--out", type=Path, metavar="FILE", help="a CSV file; default: standard output"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
