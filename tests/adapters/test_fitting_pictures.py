"""Pictures of a fit stay readable: all text is inside of them, and no text covers another."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fits import quick_fit, table
from lmkan_cupy.adapters.fitting import FittedModel, pictures
from matplotlib.figure import Figure
from matplotlib.text import Text
from problems import first_short

TITLES = ["lmKAN", "MLP"]
WORDS = "concentration of dissolved organic carbon, in mg per litre, 24 hours"
ONE_WORD = WORDS.replace(" ", "_")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The pictures that are saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    return figures


def check_readable(figure: Figure) -> None:
    figure.draw_without_rendering()
    texts: list[Text] = [] if figure._suptitle is None else [figure._suptitle]
    for axes in figure.axes:
        texts += [axes.title, *axes.texts]
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            texts += [axis.label, axis.offsetText]
            for tick in axis.get_major_ticks():
                if min(limits) <= tick.get_loc() <= max(limits):
                    texts += [tick.label1, tick.label2]
    shown = [each for each in texts if each.get_text() and each.get_visible()]
    boxes = {each: each.get_window_extent() for each in shown}
    for text, box in boxes.items():
        assert figure.bbox.padded(1).containsx(box.x0), text
        assert figure.bbox.padded(1).containsx(box.x1), text
        assert figure.bbox.padded(1).containsy(box.y0), text
        assert figure.bbox.padded(1).containsy(box.y1), text
        assert text.get_fontsize() >= 4, text
    for (one, first), (other, second) in combinations(boxes.items(), 2):
        assert not first.padded(-1).overlaps(second.padded(-1)), (one, other)


PARITY: dict[str, tuple[int, list[str], float, float]] = {
    "few-rows": (5, ["y"], 1.0, 0.0),
    "many-rows": (100_000, ["y"], 1.0, 0.0),
    "long-names": (50, ["y", WORDS, ONE_WORD], 1e5, 3e6),
    "very-long-name": (50, [5 * ONE_WORD], 1.0, 0.0),
    "large": (50, ["y"], 1e9, 0.0),
    "small": (50, ["y"], 1e-7, 0.0),
    "large-mean": (50, ["y"], 1.0, 1e9),
}


@pytest.mark.parametrize(
    ("rows", "names", "scale", "mean"), first_short(PARITY.values()), ids=PARITY
)
def test_parity(
    drawn: list[Figure], rows: int, names: list[str], scale: float, mean: float
) -> None:
    rng = np.random.default_rng(0)
    values = mean + scale * rng.normal(size=(rows, len(names)))
    predictions = {title: values + 0.1 * scale * rng.normal(size=values.shape) for title in TITLES}
    pictures.save_parity_picture(Path(), names, values, predictions)
    check_readable(*drawn)


CLASSES: dict[str, tuple[list[Any], int]] = {
    "two": ([False, True], 5),
    "many-rows": ([0, 1], 2_000_000),
    "long-names": ([WORDS, ONE_WORD, "c"], 100),
    "many": ([f"class {i}" for i in range(60)], 5000),
    "very-many": ([*range(150)], 20_000),
}


@pytest.mark.parametrize(("labels", "rows"), first_short(CLASSES.values()), ids=CLASSES)
def test_confusion(drawn: list[Figure], labels: list[Any], rows: int) -> None:
    values = np.arange(rows) % len(labels)
    logits = np.eye(len(labels))[(values + (values % 7 == 0)) % len(labels)]
    pictures.save_confusion_picture(Path(), labels, values, dict.fromkeys(TITLES, logits))
    check_readable(*drawn)


@pytest.fixture
def named() -> Callable[..., FittedModel]:
    """A model whose columns have other names, scales and means."""
    model = quick_fit().model

    def change(names: list[str], scale: float = 1.0, mean: float = 0.0) -> FittedModel:
        columns = zip(model.description.columns, names, strict=True)
        described = dataclasses.replace(
            model.description, columns=[{**column, "name": name} for column, name in columns]
        )
        module = copy.deepcopy(model.module)
        module.feature_scale.mul_(scale)
        module.feature_mean.mul_(scale).add_(mean)
        return dataclasses.replace(model, description=described, module=module)

    return change


@pytest.mark.parametrize(
    ("rows", "names", "scale", "mean"),
    [
        (5, [*"abc"], 1.0, 0.0),
        (60, [WORDS, ONE_WORD, WORDS + "c"], 1.0, 0.0),
        (60, [*"abc"], 1e9, 0.0),
        (60, [*"abc"], 1e-7, 0.0),
        (60, [*"abc"], 1.0, 1e9),
    ],
    ids=["few-rows", "long-names", "large", "small", "large-mean"],
)
def test_functions(
    drawn: list[Figure],
    named: Callable[..., FittedModel],
    rows: int,
    names: list[str],
    scale: float,
    mean: float,
) -> None:
    features = mean + scale * table(rows)[[*"abc"]].to_numpy()
    pictures.save_functions_picture(Path(), named(names, scale, mean), features)
    (figure,) = drawn
    check_readable(figure)
    for axes in figure.axes:
        if axes.get_title():  # no colour bar
            assert np.ptp(axes.get_xlim()) < 10 * scale
