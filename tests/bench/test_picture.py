"""The committed picture is that of the committed results."""

from __future__ import annotations

import re

import pytest

matplotlib = pytest.importorskip("matplotlib")
picture = pytest.importorskip("bench.picture")


@pytest.mark.long
def test_picture_is_that_of_the_results() -> None:
    """Else: python -m bench.picture."""
    committed = picture.PICTURE.read_text()
    (drawn_by,) = re.findall(r"Matplotlib v([\d.]+\d)", committed)
    if drawn_by != matplotlib.__version__:
        pytest.skip(f"Matplotlib {matplotlib.__version__} draws other lines than {drawn_by}")
    assert picture.as_svg(picture.draw(picture.networks())) == committed


@pytest.mark.long
def test_another_result_is_another_picture() -> None:
    networks = picture.networks()
    drawn = picture.as_svg(picture.draw(networks))
    networks.iloc[0, networks.columns.get_loc(picture.ERROR)] *= 1.01
    assert picture.as_svg(picture.draw(networks)) != drawn
