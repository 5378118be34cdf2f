"""``python -m bench.experiments.fashion_mnist``: CNNs of both kinds on images of clothes.

``--data`` is the folder of the four idx files, by default that of Debian's package
``dataset-fashion-mnist``.
"""

from pathlib import Path

from .experiment import command_line, parse, results_path
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
    experiment.run(results_path("fashion_mnist", arguments), arguments.device)


if __name__ == "__main__":
    main()
