"""The command line, ``python -m lmkan_cupy info | fit | predict | show``: it only calls them."""

import argparse
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import __version__
from .array_checks import COMPUTE_DTYPE
from .installation import install_extra


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
            show_plan(
                features,
                num_grids,
                batch,
                table_dtype=arguments["dtype"],
                dimension=arguments["dimension"],
            )
        except ValueError as error:
            return _fail(str(error))
        return 0
    try:
        from .adapters import fitting

        run: Callable[..., int]
        if command == "show":
            from .adapters import inspection

            run = inspection.run_show
        else:
            run = fitting.run_fit if command == "fit" else fitting.run_predict
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = "inspect" if command == "show" else "fit"
        return _fail(f"{command} needs {package}: {install_extra(extra)}")
    except (ImportError, OSError) as error:
        return _fail(f"{command} needs a package that is installed but cannot be loaded: {error}")
    try:
        return run(**arguments)
    except fitting.InputError as error:
        return _fail(str(error))


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


class _Once(argparse.Action):
    """Stores a value, and refuses a second one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store it."""
        if getattr(self, "given", False):
            parser.error(f"{option_string} is given twice")
        self.given = True
        setattr(namespace, self.dest, values)


class _Each(argparse.Action):
    """Appends a value to a list, and refuses one that is in it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Append it."""
        before = getattr(namespace, self.dest)
        if values in before:
            parser.error(f"{option_string} {values} is given twice")
        setattr(namespace, self.dest, [*before, values])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lmkan_cupy", description=__doc__)
    parser.add_argument("--version", action="version", version=f"lmkan-cupy {__version__}")
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
    info.add_argument(
        "--dimension",
        type=int,
        choices=(1, 2),
        default=2,
        help="inputs of an inner function, for --plan; default: %(default)s",
    )

    fit = commands.add_parser(
        "fit",
        help="fit a network of lmKAN layers to a table",
        description="Fit a network of lmKAN layers to a table, and an MLP of equal inference FLOPs "
        "beside it; write the model, metrics.json and pictures. Exit code: 0; 2 for a wrong "
        "argument or file; 130 after Ctrl-C, SIGTERM or SIGHUP, which keep the best model so far.",
    )
    fit.add_argument(
        "path",
        nargs="?",
        type=Path,
        metavar="DATA",
        help=".csv, .tsv (also .gz) or .parquet (also a folder), or - for CSV on standard input: "
        "all columns but the targets are features; .npz: arrays 'features' [rows, columns] and "
        "targets [rows], optionally 'feature_names'; default: the bundled methane sample",
    )
    several: dict[str, Any] = {"action": _Each, "default": [], "metavar": "NAME"}
    fit.add_argument(
        "--target",
        **several,
        help="default: the last column, or the last array [rows]; for several, once for each",
    )
    fit.add_argument(
        "--task",
        action=_Once,
        choices=("regression", "classification"),
        help="default: classification of a target of text, truth values or zeros and ones",
    )
    fit.add_argument("--drop", **several, help="a column to leave out; for several, once for each")
    fit.add_argument("--id", **several, help="a column that names the rows, left out as well")
    fit.add_argument(
        "--validation",
        action=_Once,
        type=Path,
        metavar="FILE",
        help="a table of rows for validation; default: a tenth of the rows of DATA",
    )
    for name, kind, default, text in (
        ("width", int, 32, "features between the layers"),
        ("layers", int, 3, "number of layers"),
        ("num-grids", int, 8, "grid intervals per axis"),
        ("epochs", int, None, "most passes over the rows; default: 40 sqrt(rows) steps"),
        ("patience", int, 10, "stop after N of 50 validations without a better one"),
        ("penalty", float, None, "weight of the roughness; default: by the number of rows"),
        ("learning-rate", float, 3e-3, "of the tables; others have 10/3 of it"),
        ("search", int, 1, "settings of grid, penalty and rate to try, the given one first"),
        ("seed", int, 0, "seed of split, search and training"),
    ):
        text += "; default: %(default)s" * (default is not None)
        fit.add_argument(
            f"--{name}", action=_Once, type=kind, default=default, metavar="N", help=text
        )
    fit.add_argument(
        "--loss",
        action=_Once,
        metavar="L",
        help="squared_error, the default, absolute_error or huber; of numbers, not of classes",
    )
    fit.add_argument(
        "--device",
        action=_Once,
        default="cpu",
        metavar="D",
        help="where to train: cpu, the default, cuda, or cuda:1, ...",
    )
    fit.add_argument(
        "--out",
        action=_Once,
        type=Path,
        metavar="DIR",
        help="a new or empty folder; default: lmkan_fit, or lmkan_fit-2, ... where that exists",
    )
    fit.add_argument(
        "--no-baseline", action="store_false", dest="baseline", help="do not train the MLP"
    )

    predict = commands.add_parser("predict", help="predict the targets for the rows of a table")
    predict.add_argument("model", type=Path, metavar="MODEL", help="a folder that fit wrote")
    predict.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="a table as for fit, also -, with all columns that the model reads",
    )
    predict.add_argument(
        "--id", **several, help="a column of DATA to write first; for several, once for each"
    )
    predict.add_argument(
        "--out",
        action=_Once,
        type=Path,
        metavar="FILE",
        help="a .csv, .tsv or .parquet file; default: -, CSV on standard output",
    )

    show = commands.add_parser(
        "show", help="draw a fitted network, and print what each of its features carries"
    )
    show.add_argument("model", type=Path, metavar="MODEL", help="a folder that fit wrote")
    show.add_argument(
        "--out",
        action=_Once,
        type=Path,
        metavar="FOLDER",
        help="where to write network.png; default: MODEL",
    )
    for each in (fit, predict):
        for name, text in (("sep", "separator"), ("decimal", "decimal mark")):
            each.add_argument(
                f"--{name}",
                action=_Once,
                metavar=name[0].upper(),
                help=f"{text} of a CSV file; default: found in the file",
            )
    return parser


if __name__ == "__main__":
    sys.exit(main())
