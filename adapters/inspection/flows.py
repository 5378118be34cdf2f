"""Which functions of a network carry how much of its output."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import lmkan_cupy

from .hats import hats
from .view import View

#: Rows that functions are evaluated in.
_ROWS = 2000


@dataclass(frozen=True)
class Layer:
    """A layer of a network, and what it carries.

    Attributes
    ----------
    groups : list of tuple of int
        Inputs that go into the same functions: pairs, or single ones in a linear layer.
    carried : float64 array [groups, O]
        Share of the network's output that goes through each function. Sums to 1.
    of_inputs : float64 array [I]
        Share of it that each input carries.
    functions : array [P, S, S, O] or None
        The tables; None of a linear layer.
    inputs : float32 array [N, I]
        In which the functions were evaluated.
    """

    groups: Sequence[tuple[int, ...]]
    carried: NDArray[np.float64]
    of_inputs: NDArray[np.float64]
    functions: NDArray[Any] | None
    inputs: NDArray[np.float32]

    @property
    def sizes(self) -> tuple[int, int]:
        """Inputs and outputs."""
        return len(self.of_inputs), self.carried.shape[1]


def layers_of(viewed: View, data: Any) -> list[Layer]:
    """Return the layers of a model, and what they carry, over some rows of a table.

    Without ``data`` the features are taken as independent and normally distributed. Beginning with
    the outputs, which get equal shares, the share of every output of a layer is divided among its
    functions in proportion to their variances. The share of a function is divided between its two
    inputs in proportion to the variances of its averages over the other one; each gets half of the
    rest.

    Raises
    ------
    ValueError
        If a layer has functions of one or three variables.
    """
    arrays = viewed.network.arrays
    if other := {each.ndim - 2 for each in arrays} & {1, 3}:
        raise ValueError(
            f"{viewed.function}: model must have functions of two variables, got {other.pop()}"
        )
    evaluated = [*_evaluated(viewed, data)]
    share = np.full(len(viewed.outputs), 1 / len(viewed.outputs))
    layers = []
    for x, groups, tables, variances in reversed(evaluated):
        total = variances.sum(axis=(0, 1))
        carried = variances / np.where(total > 0, total, 1) * share  # [parts, groups, O]
        of_inputs = np.zeros(x.shape[1])
        for number, group in enumerate(groups):
            for which, feature in enumerate(group):
                own, common = carried[which, number].sum(), carried[2, number].sum()
                of_inputs[feature] = own + common / len(group)
        layers.append(Layer(groups, carried.sum(axis=0), of_inputs, tables, x))
        share = of_inputs
    return layers[::-1]


def _evaluated(viewed: View, data: Any) -> Iterator[tuple[Any, ...]]:
    """Yield of each layer its inputs [N, I], groups, tables, and variances [3, groups, O].

    The variances are those of the averages over the second and over the first input, and the rest.
    """
    network = viewed.network
    rng = np.random.default_rng(0)
    if data is None:
        x = rng.standard_normal((_ROWS, network.in_features), np.float32)
    else:
        frame = viewed.frame(data)
        rows = rng.permutation(len(frame))[:_ROWS]
        x = viewed.inputs(frame.take(rows)).float().cpu().numpy()
    with torch.no_grad():
        at_first = torch.from_numpy(x)
        if network.selection is not None:
            at_first = network.selection.cpu()(at_first)
        if network.shift is not None and network.scale is not None:
            at_first = (at_first - network.shift.float().cpu()) * network.scale.float().cpu()
    h = at_first.numpy()
    arrays = iter(each.detach().float().cpu().numpy() for each in network.arrays)
    for array, bound in zip(arrays, network.bounds, strict=False):  # a linear layer has two
        in_features = h.shape[1]
        if array.ndim == 2:
            groups: list[tuple[int, ...]] = [(i,) for i in range(in_features)]
            alone = np.square(array.T) * h.var(axis=0)[:, None]
            yield h, groups, None, np.stack([alone, 0 * alone, 0 * alone]).astype(np.float64)
            h = h @ array.T + next(arrays)
            continue
        h = h.clip(-bound, bound)
        groups = [tuple(range(i, min(i + 2, in_features))) for i in range(0, in_features, 2)]
        variances = []
        for pair, group in enumerate(groups):
            table = array[pair].astype(np.float64)
            padded = np.pad(h[:, group], ((0, 0), (0, 2 - len(group))))
            first, second = (_weights(column, len(table)) for column in padded.T)
            whole = np.einsum("ni,nj,ijo->no", first, second, table, optimize=True)
            of_first = np.einsum("ni,j,ijo->no", first, second.mean(axis=0), table).var(axis=0)
            of_second = np.einsum("i,nj,ijo->no", first.mean(axis=0), second, table).var(axis=0)
            rest = (whole.var(axis=0) - of_first - of_second).clip(0)
            variances.append([of_first, of_second, rest])
        yield h, groups, array, np.swapaxes(np.array(variances), 0, 1)
        h = lmkan_cupy.forward(h, array)


def _weights(coordinates: NDArray[Any], num_knots: int) -> NDArray[np.float64]:
    """Return the weights [N, S] of the knots for coordinates [N]; they add up to 1 exactly.

    In float32 they are off by roundings, which would look like an effect.
    """
    weights = hats(coordinates, num_knots).astype(np.float64)
    exact: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return exact
