"""``python -m bench.experiments.fashion_mnist``: lmKAN and ordinary CNNs on clothes.

``--data`` is the folder of the four idx files, by default that of Debian's package
``dataset-fashion-mnist``.
"""

from pathlib import Path

from .experiment import carry_out, command_line, parse
from .image_data import read_fashion_mnist
from .images import make_experiment


def main() -> None:
    parser = command_line("fashion_mnist", __doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("/usr/share/datasets/fashion-mnist"),
        help="folder of the four files",
    )
    arguments = parse(parser)
    try:
        images = read_fashion_mnist(arguments.data)
    except FileNotFoundError as error:
        parser.error(str(error))
    experiment = make_experiment("Fashion-MNIST", images, arguments)
    carry_out(experiment, "fashion_mnist", arguments)


if __name__ == "__main__":
    main()
