"""The command ``python -m lmkan_cupy show``."""

from pathlib import Path

from ..fitting import InputError, load
from .flows import layers_of
from .pictures import draw
from .view import view

#: The file that the command writes.
_PICTURE = "network.png"


def run_show(model: Path, out: Path | None) -> int:
    """Run ``python -m lmkan_cupy show``; return 0.

    It prints the sizes of the layers and what each feature carries, and writes a picture of the
    network to the folder ``out``, by default that of the model.
    """
    viewed = view("show", load(model))
    layers = layers_of(viewed, None)
    folder = model if out is None else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draw(viewed, layers).savefig(folder / _PICTURE)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from error
    parameters = 0
    for layer in layers:
        inputs, outputs = layer.sizes
        assert layer.functions is not None  # fit makes no other layers
        parameters += layer.functions.size
        print(f"{inputs:>5} features in {len(layer.groups)} pairs -> {outputs}")
    print(f"{parameters:,d} parameters; {', '.join(viewed.outputs)} from these features:")
    shares = sorted(zip(layers[0].of_inputs, viewed.taken, strict=True), reverse=True)
    for share, name in shares:
        print(f"{share:>6.1%}  {name}")
    print(f"The picture is {folder / _PICTURE}")
    return 0
