"""``prune_``: what does not matter for the output of a chain of layers goes, and the rest stays."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .chains import NOTHING, Selection, chain_parts
from .functional import lmkan
from .layers import LMKANLinear


@torch.no_grad()
def prune_(model: nn.Module, data: Tensor, tolerance: float, *, keep_inputs: bool = False) -> float:
    """Remove from a chain of layers what does not matter for its output, in place.

    These are outputs of a layer that go into another :class:`LMKANLinear`, and inputs of the first
    layer. What is left of a function of an input that goes is its average over ``data``: a function
    of the other input of the pair, or a constant. Two inputs without partners become a pair, whose
    table is the sum of both. So the layers get fewer outputs and fewer pairs. One input after the
    other goes as long as the output changes by no more than ``tolerance``, first those that alone
    change it least.

    The model can be trained further, with a new optimiser, since its parameters are new. Residual
    branches are folded into the tables first, and the model is left in evaluation mode.

    Parameters
    ----------
    model : Module
        A chain as :func:`fuse` takes it, of two layers at least or an ``nn.Sequential``.
    data : Tensor [N, I]
        Inputs of the model, like those it is going to get; some thousand rows will do.
    tolerance : float
        The largest change of the output, measured as the result is.
    keep_inputs : bool
        Whether all inputs of the first layer stay. Otherwise an ``nn.Sequential`` gets a
        ``Selection`` of those that stay in front, and takes the same x as before; other models
        cannot get one and keep all inputs.

    Returns
    -------
    float
        The root mean square change of the output over ``data``, divided by the standard deviation
        of the output.

    Raises
    ------
    TypeError, ValueError
        If the model is no such chain or has a layer twice, ``data`` has another shape or the same
        output for all rows, or ``tolerance`` is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"prune_: tolerance must be at least 0, got {tolerance}")
    if data.ndim != 2 or not len(data):
        raise ValueError(f"prune_: data must have shape [N, I], got {tuple(data.shape)}")
    seams = [*_seams(model, data, isinstance(model, nn.Sequential) and not keep_inputs)]
    if not seams:
        raise ValueError(
            "prune_: nothing can be removed: model must be an nn.Sequential, or have an "
            "LMKANLinear whose outputs go into another"
        )
    expected = model(data)
    spread = (expected - expected.mean(0)).square().mean().sqrt().item()
    if (expected == expected[0]).all():
        raise ValueError("prune_: the output of model must not be the same for all rows of data")

    def error() -> float:
        change: float = (model(data) - expected).square().mean().sqrt().item()
        return change / spread

    costs = []
    for number, seam in enumerate(seams):
        for feature in range(seam.taker.in_features):
            before = seam.drop(feature)
            costs.append((error(), number, feature))
            seam.restore(feature, before)
    for cost, number, feature in sorted(costs):
        seam = seams[number]
        if cost > tolerance:
            break
        if sum(seam.is_kept) > 1:
            before = seam.drop(feature)
            if error() > tolerance:
                seam.restore(feature, before)
    for seam in reversed(seams):  # the front last, where a selection changes the paths
        seam.close()
    return error()


def _seams(model: nn.Module, x: Tensor, with_inputs: bool) -> "Iterator[_Seam]":
    """Fold the layers of a model, in evaluation mode; yield its seams, given its inputs [N, I]."""
    parts = [*chain_parts("prune_", model.eval())]
    sized = [part for _, part in parts if type(part) in (LMKANLinear, nn.BatchNorm1d)]
    if len({*map(id, sized)}) < len(sized):
        raise ValueError("prune_: model must not hold a layer twice")
    is_seam, giver, norms = with_inputs, None, list[nn.BatchNorm1d]()
    for path, part in parts:
        kind = type(part)
        if kind is LMKANLinear:
            part.fold_()
            if is_seam:
                yield _Seam(model, giver, norms, path, x)
        if kind is nn.BatchNorm1d:
            norms.append(part)
        elif kind not in (nn.Hardtanh, *NOTHING):
            is_seam = kind is LMKANLinear or (kind is Selection and with_inputs)
            giver, norms = path, []
        x = part(x)


class _Seam:
    """The features that an LMKANLinear takes, from another or as inputs of the model.

    Parameters
    ----------
    model : Module
    giver : str or None
        Path of the LMKANLinear or the Selection in front, None at the front of the model.
    norms : list of BatchNorm1d
        The normalisations of the features.
    taker : str
        Path of the LMKANLinear that takes them.
    x : Tensor [N, I]
        What it takes.
    """

    def __init__(
        self,
        model: nn.Module,
        giver: str | None,
        norms: list[nn.BatchNorm1d],
        taker: str,
        x: Tensor,
    ) -> None:
        self._model = model
        self._giver = giver
        self._norms = norms
        self._taker = taker
        self._in_features = x.shape[1]
        # An odd last input has a partner that is 0 in all rows.
        x = nn.functional.pad(x, (0, self._in_features % 2))
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        self.is_kept = [feature < self._in_features for feature in range(x.shape[1])]
        num_knots = self.taker.num_grids + 1
        hats = torch.eye(num_knots, device=x.device, dtype=x.dtype)[None, :, None]
        hats = hats.expand(1, num_knots, num_knots, num_knots).contiguous()
        self._weights = torch.stack(  # by which an average sums up the values at the knots
            [lmkan(column[:, None], hats, engine=self.taker.engine).mean(0) for column in x.T]
        )

    @property
    def taker(self) -> LMKANLinear:
        return self._layer(self._taker)

    def drop(self, feature: int) -> Tensor:
        """Average over a feature; return the function [S, S, O] of its pair as it was."""
        pair, axis = divmod(feature, 2)
        function = self.taker.tables[pair]
        before = function.clone()
        wide = function.to(self._weights.dtype)
        average = torch.tensordot(self._weights[feature], wide, dims=([0], [axis]))
        function.copy_(average.unsqueeze(axis).expand_as(function))
        self.is_kept[feature : feature + 1] = [False]
        return before

    def restore(self, feature: int, before: Tensor) -> None:
        self.taker.tables[feature // 2].copy_(before)
        self.is_kept[feature] = True

    def close(self) -> None:
        """Make what is in front of the features, and what is behind them, smaller."""
        if all(self.is_kept[: self._in_features]):
            return
        if self._in_features % 2:
            self.drop(self._in_features)
        kept = [feature for feature, is_kept in enumerate(self.is_kept) if is_kept]
        paired = [feature for feature in kept if self.is_kept[feature ^ 1]]
        single = [feature for feature in kept if not self.is_kept[feature ^ 1]]
        tables = self.taker.tables
        gone = sorted({*range(len(tables))} - {feature // 2 for feature in kept})
        functions = [tables[feature // 2] for feature in paired[::2]]
        lines = [tables[feature // 2].select(1 - feature % 2, 0) for feature in single]  # [S, O]
        lines += [torch.zeros_like(each) for each in lines[: len(lines) % 2]]
        functions += [u[:, None] + v for u, v in zip(lines[::2], lines[1::2], strict=True)]
        functions[0] = functions[0] + tables[gone, 0, 0].sum(0)
        order = torch.tensor([*paired, *single], device=tables.device)
        self._replace(self._taker, len(order), torch.stack(functions))
        for norm in self._norms:
            norm.num_features = len(order)
            for name, value in [*norm.named_buffers(), *norm.named_parameters()]:
                if value.ndim:
                    some: Tensor = value[order]
                    is_buffer = not isinstance(value, nn.Parameter)
                    setattr(norm, name, some if is_buffer else nn.Parameter(some))
        if self._giver is None:
            assert isinstance(self._model, nn.Sequential)
            first = self._model[0]
            self._model[0] = nn.Sequential(Selection(self._in_features, order), first).eval()
            return
        selection = self._model.get_submodule(self._giver)
        if isinstance(selection, Selection):
            selection.columns = selection.columns[order]
            return
        giver = self._layer(self._giver)
        self._replace(self._giver, giver.in_features, giver.tables[..., order].contiguous())

    def _layer(self, path: str) -> LMKANLinear:
        layer = self._model.get_submodule(path)
        assert isinstance(layer, LMKANLinear)
        return layer

    def _replace(self, path: str, in_features: int, tables: Tensor) -> None:
        """Put a layer of other tables [P, S, S, O] in the place of one."""
        old = self._layer(path)
        new = LMKANLinear(
            in_features,
            tables.shape[3],
            old.num_grids,
            init_scale=old.init_scale,
            engine=old.engine,
            device="meta",
            dtype=tables.dtype,
        )
        new.tables = nn.Parameter(tables, old.tables.requires_grad)
        owner, _, name = path.rpartition(".")
        setattr(self._model.get_submodule(owner), name, new.eval())
