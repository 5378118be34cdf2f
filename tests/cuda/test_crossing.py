"""Every kernel in the emulator against the oracle, in all cases of `crossing`.

As in `test_kernels`, each case runs in three orders of threads and blocks, with the same bits.
"""

from __future__ import annotations

import emulated
import emulator
import numpy as np
import pytest
from crossing import CASES, Case, row_cases
from emulated import ROW
from problems import FLOAT32, HALF_TABLES

pytest_plugins = ["emulator.fixtures"]
pytestmark = pytest.mark.usefixtures("emulator_tools", "engine")

WANTED = ["y", "gradient of x", "gradient of tables", "double backward"]
SHORT = row_cases(ROW, FLOAT32, WANTED, ["short"]) + row_cases(ROW, HALF_TABLES, ["y"], ["short"])
NAMES = {each.name for each in SHORT}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(each, id=each.name, marks=[] if each.name in NAMES else pytest.mark.long)
        for each in CASES
    ],
)
def test_case(case: Case) -> None:
    all_results = []
    for order in emulator.ORDERS:
        with emulated.using(order=order, seed=7):
            all_results.append(case.check())
    for results in all_results[1:]:
        for result, first in zip(results, all_results[0], strict=True):
            np.testing.assert_array_equal(result, first)
