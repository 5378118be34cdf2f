"""``python -m bench.experiments.cifar10 --data FOLDER``: lmKAN and ordinary CNNs on images.

The folder holds ``cifar10_jpeg.npz``, or the batches of CIFAR-10's archive for Python; or, with
``--tree SIZE``, any images in ImageNet's layout, ``train/<class>/*`` and ``val/<class>/*``, which
are scaled to SIZE x SIZE pixels.

``--setting paper`` has the paper's networks, on CIFAR-10 or with ``--tree 81``, and its
augmentation; ``--flat`` compares FastKANs on images as rows of numbers. It needs the extra
``[images]``, and keeps augmented images in the folder of ``--data``.
"""

from pathlib import Path

from . import images, paper_images
from .experiment import carry_out, command_line, paper_rates, parse
from .image_data import read_cifar10, read_tree


def main() -> None:
    parser = command_line("cifar10", __doc__, has_paper=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of the images")
    parser.add_argument(
        "--tree", type=int, metavar="SIZE", help="read images in ImageNet's layout instead"
    )
    parser.add_argument(
        "--flat", action="store_true", help="with --setting paper: FastKANs, one hidden layer"
    )
    arguments = parse(parser)
    tree, data, is_flat = arguments.tree, arguments.data, arguments.flat
    is_paper = arguments.setting == "paper"
    if is_paper and (tree not in (None, 81) or (is_flat and tree is not None)):
        parser.error("--setting paper is for CIFAR-10 and, without --flat, for --tree 81")
    if is_flat and not is_paper:
        parser.error("--flat needs --setting paper")
    name, title = "cifar10", "CIFAR-10"
    if tree is not None:
        name = data.resolve().name
        title = f"Images of {name}"
    name, title = f"{name}{'_flat' * is_flat}", f"{title}{', flat' * is_flat}"
    try:
        found = read_cifar10(data) if tree is None else read_tree(data, tree)
        if is_paper:
            rates = paper_rates(name, arguments)
            experiment = paper_images.make_experiment(
                f"{title}, in the paper's setting",
                found,
                data,
                arguments.scale,
                arguments.device,
                rates,
                is_flat=is_flat,
            )
        else:
            experiment = images.make_experiment(title, found, arguments)
    except FileNotFoundError as error:
        parser.error(str(error))
    carry_out(experiment, name, arguments)


if __name__ == "__main__":
    main()
