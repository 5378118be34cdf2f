"""``python -m bench.experiments.cifar10 --data FOLDER``: CNNs of both kinds on colour images.

The folder holds ``cifar10_jpeg.npz``, or the batches of CIFAR-10's archive for Python; or, with
``--tree SIZE``, any images in ImageNet's layout, ``train/<class>/*`` and ``val/<class>/*``, which
are scaled to SIZE x SIZE pixels.
"""

from pathlib import Path

from .experiment import command_line, parse, results_path
from .image_data import read_cifar10, read_tree
from .images import make_experiment


def main() -> None:
    parser = command_line("cifar10", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the images")
    parser.add_argument(
        "--tree", type=int, metavar="SIZE", help="read images in ImageNet's layout instead"
    )
    arguments = parse(parser)
    try:
        if arguments.tree is None:
            name, title, images = "cifar10", "CIFAR-10", read_cifar10(arguments.data)
        else:
            name = arguments.data.resolve().name
            title, images = f"Images of {name}", read_tree(arguments.data, arguments.tree)
    except FileNotFoundError as error:
        parser.error(str(error))
    experiment = make_experiment(title, images, arguments)
    experiment.run(results_path(name, arguments), arguments.device)


if __name__ == "__main__":
    main()
