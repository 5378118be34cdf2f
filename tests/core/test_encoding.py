"""Columns of tables as features: every kind, what is kept of them, what is refused."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import fresh_process
import numpy as np
import pytest

from lmkan_cupy.encoding import LEAST_ROWS_OF_LEVEL, MOST_LEVELS, Encoder, fit_encoder

ROWS = 60


def encoded(column: Any) -> tuple[list[str], Any, str]:
    """Names and values of the features of a single column "c", and what became of it."""
    encoder, fates = fit_encoder({"c": column, "x": np.arange(len(column))})
    assert encoder.names[-1] == "x"
    features = encoder({"c": column, "x": np.arange(len(column))})[:, :-1]
    return encoder.names[:-1], features, fates["c"]


def only(column: Any) -> Encoder:
    return fit_encoder({"c": column})[0]


# Against a slow oracle

WORDS = ["ale", "mead", "wine", "port", "rare"]


def mixed_table(rng: np.random.Generator) -> dict[str, list[Any]]:
    """Lists of values of every kind, with gaps in all columns whose names end in "?"."""
    day = datetime.datetime(2024, 2, 28, 6)
    table: dict[str, list[Any]] = {
        "number": rng.normal(size=ROWS).tolist(),
        "number?": rng.integers(0, 9, ROWS).tolist(),
        "truth": (rng.random(ROWS) < 0.3).tolist(),
        "truth?": (rng.random(ROWS) < 0.5).tolist(),
        "when": [day + datetime.timedelta(hours=7 * i) for i in range(ROWS)],
        "when?": [day.date() + datetime.timedelta(days=11 * i) for i in range(ROWS)],
        "drink": [*rng.choice(WORDS[:4], ROWS - 1), "rare"],
        "drink?": [*rng.choice(WORDS[:3], ROWS)],
        "two": [*rng.choice(["no", "yes"], ROWS)],
    }
    for name in table:
        if name.endswith("?"):
            for row in rng.choice(ROWS, 7, replace=False):
                table[name][row] = None
    return table


def expected_features(table: dict[str, list[Any]]) -> dict[str, list[float]]:
    """What the encoder should make of `mixed_table`, value by value."""
    features: dict[str, list[float]] = {}
    for name, values in table.items():
        present = [value for value in values if value is not None]
        if isinstance(present[0], str):
            levels = [each for each in sorted(set(present)) if present.count(each) >= 5]
            parts = {f"{name} = {level}": [float(v == level) for v in values] for level in levels}
            if None in values:
                parts[f"{name} is missing"] = [float(v is None) for v in values]
            if "rare" in present:
                parts[f"{name} is another"] = [float(v == "rare") for v in values]
            if name == "two":
                del parts["two = no"]
            features |= parts
            continue
        if isinstance(present[0], datetime.date):
            start = datetime.datetime(1970, 1, 1)
            numbers = [
                None
                if value is None
                else (datetime.datetime.fromisoformat(value.isoformat()) - start).total_seconds()
                / 86400
                for value in values
            ]
        else:
            numbers = [None if value is None else float(value) for value in values]
        known = sorted(number for number in numbers if number is not None)
        median = (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2
        filled = [median if number is None else number for number in numbers]
        features[name] = filled
        if isinstance(present[0], datetime.date):
            for part, period in {"time of day": 1, "weekday": 7, "season": 365.2425}.items():
                if part == {"when": "season", "when?": "time of day"}[name]:
                    continue
                for wave in ("sine", "cosine"):
                    function = getattr(math, {"sine": "sin", "cosine": "cos"}[wave])
                    features[f"{name} ({part}, {wave})"] = [
                        function(2 * math.pi * math.fmod(number, period) / period)
                        for number in filled
                    ]
        if None in values:
            features[f"{name} is missing"] = [float(value is None) for value in values]
    return features


def test_features_are_those_of_the_oracle(rng: np.random.Generator) -> None:
    table = mixed_table(rng)
    encoder, fates = fit_encoder(table)
    expected = expected_features(table)
    assert encoder.names == [*expected]
    assert [*fates] == [*table]
    features = encoder(table)
    assert features.dtype == np.float64
    assert features.flags.c_contiguous
    np.testing.assert_allclose(features, np.transpose([*expected.values()]), atol=1e-9)


def test_an_encoder_is_plain_data(rng: np.random.Generator) -> None:
    table = mixed_table(rng)
    encoder, _ = fit_encoder(table)
    again = Encoder(json.loads(json.dumps(encoder.columns)))
    assert again.names == encoder.names
    np.testing.assert_array_equal(again(table), encoder(table))


def test_rows_do_not_depend_on_each_other(rng: np.random.Generator) -> None:
    """And a single row may be plain values."""
    table = mixed_table(rng)
    encoder, _ = fit_encoder(table)
    features = encoder(table)
    assert encoder({name: [] for name in table}).shape == (0, len(encoder.names))
    for row in range(5):
        alone = encoder({name: values[row] for name, values in table.items()})
        np.testing.assert_array_equal(alone, features[row : row + 1])


def test_numpy_is_enough(tmp_path: Path) -> None:
    code = """
        import sys
        from lmkan_cupy.encoding import fit_encoder
        table = {"a": [1.0, None, 2.0], "b": ["2024-01-01", "2024-01-02", "2024-01-04"]}
        print(fit_encoder(table)[0](table).tolist())
        print({"pandas", "sklearn", "torch"}.intersection(sys.modules))
    """
    assert fresh_process.run(code, tmp_path) == (
        "[[1.0, 0.0, 19723.0], [1.5, 1.0, 19724.0], [2.0, 0.0, 19726.0]]\nset()\n"
    )


# Levels


def test_rare_levels_and_unknown_ones_are_others() -> None:
    least = LEAST_ROWS_OF_LEVEL
    names, features, fate = encoded(["a"] * least + ["b"] * least + ["c"] * (least - 1) + ["d"])
    assert names == ["c = a", "c = b", "c is another"]
    assert fate == f"category of 2 levels; 2 rare ones ({least} rows) are others"
    assert features.sum(axis=0).tolist() == [least, least, least]
    unknown = only(["a"] * least + ["b"] * least + ["c"])({"c": ["new", "a"]})
    assert unknown.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_the_most_frequent_levels_have_features() -> None:
    texts = [f"level {i:02}" for i in range(MOST_LEVELS + 3) for _ in range(5 + i)]
    names, features, fate = encoded(texts)
    assert names == [*(f"c = level {i:02}" for i in range(3, MOST_LEVELS + 3)), "c is another"]
    assert features[:, -1].sum() == 5 + 6 + 7
    assert "3 rare ones (18 rows)" in fate


def test_an_unknown_level_without_others_is_the_average() -> None:
    assert only(["a"] * 15 + ["b"] * 5)({"c": ["new"]}).tolist() == [[0.25]]
    three = only(["a"] * 10 + ["b"] * 5 + [None] * 5)
    assert three.names == ["c = a", "c = b", "c is missing"]
    assert three({"c": ["new"]}).tolist() == [[0.5, 0.25, 0.25]]


@pytest.mark.parametrize(
    ("column", "later"),
    [
        (["1"] * 6 + ["x"] * 6, [1, 1.0, "1", " 1 ", np.int64(1), Decimal(1)]),
        (["True"] * 6 + ["x"] * 6, [True, "True", np.bool_(True)]),
    ],
    ids=["number", "truth"],
)
def test_a_level_is_the_same_in_other_dtypes(column: list[Any], later: list[Any]) -> None:
    encoder = only(column)
    expected = encoder({"c": column[:1]})
    for value in later:
        for given in (value, [value], np.array([value, "x"], object)[:1]):
            np.testing.assert_array_equal(encoder({"c": given}), expected)


# Missing values


def test_missing_values_where_there_were_none_are_refused_all_at_once() -> None:
    table = {"a": [1.0, 2.0] * 5, "b": ["x", "y"] * 5, "t": [True, False] * 5, "g": [1, None] * 5}
    encoder, _ = fit_encoder(table)
    with pytest.raises(ValueError, match="column") as caught:
        encoder(
            {"a": [1.0, np.nan, np.nan], "b": [None, "x", "x"], "t": [True, None, True], "g": 3}
        )
    assert str(caught.value) == (
        "column 'a': row 2 has no value (2 such rows); "
        "column 'b': row 1 has no value; "
        "column 't': row 2 has no value"
    )


@pytest.mark.parametrize("missing", [None, float("nan"), "", "  ", np.datetime64("NaT")])
def test_what_is_missing(missing: Any) -> None:
    for column in ([1.0, 2.0, 4.0] * 5, ["x", "y", "y"] * 5, [True, False, True] * 5):
        names, features, fate = encoded([*column, missing])
        assert names[-1] == "c is missing"
        assert features[:, -1].tolist() == [0] * 15 + [1]
        assert "missing in 1 rows" in fate


def test_masked_values_are_missing() -> None:
    values = np.ma.masked_greater(np.arange(9), 6)  # type: ignore[no-untyped-call]
    names, features, _ = encoded(values)
    assert names == ["c", "c is missing"]
    np.testing.assert_array_equal(features[:, 0], [0, 1, 2, 3, 4, 5, 6, 3, 3])


# What is left out


@pytest.mark.parametrize(
    ("column", "fate"),
    [
        ([7.0] * ROWS, "left out: constant"),
        (["same"] * ROWS, "left out: constant"),
        ([True] * ROWS, "left out: constant"),
        (["2024-01-01"] * ROWS, "left out: constant"),
        ([None] * ROWS, "left out: empty"),
        (np.full(ROWS, np.nan), "left out: empty"),
        ([f"name {i}" for i in range(ROWS)], "left out: text, but no value in 5 rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_columns_that_are_left_out(column: Any, fate: str) -> None:
    assert encoded(column)[::2] == ([], fate)
    with pytest.raises(ValueError, match=f"there is no column to learn from: 'c' is {fate}"):
        fit_encoder({"c": column})


@pytest.mark.parametrize("value", [7.0, "same", True, datetime.date(2024, 1, 1)])
def test_of_a_constant_with_gaps_the_gaps_are_learned(value: Any) -> None:
    names, features, _ = encoded([value] * 8 + [None] * 2)
    assert names == ["c is missing"]
    assert features[:, 0].tolist() == [0] * 8 + [1] * 2


# Numbers


@pytest.mark.parametrize(
    "column",
    [
        np.arange(ROWS),
        np.arange(ROWS, dtype=np.uint8),
        np.arange(ROWS, dtype=np.float16),
        np.arange(ROWS, dtype=">f4"),
        np.arange(ROWS).astype("m8[D]"),
        np.arange(ROWS).astype(object),
        np.arange(ROWS).astype(str),
        [datetime.timedelta(days=i) for i in range(ROWS)],
        [Decimal(i) for i in range(ROWS)],
        [f" {i}.0 " for i in range(ROWS)],
        [f"{i}e0" for i in range(ROWS)],
    ],
    ids=lambda value: f"{getattr(value, 'dtype', type(value[0]).__name__)}",
)
def test_numbers_of_many_kinds(column: Any) -> None:
    names, features, fate = encoded(column)
    assert (names, fate) == (["c"], "number")
    np.testing.assert_array_equal(features[:, 0], np.arange(ROWS))
    np.testing.assert_array_equal(only(np.arange(ROWS))({"c": column}), features)


@pytest.mark.parametrize("text", ["1_0", "inf", "x"])
def test_text_that_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match=f"row 2 holds '{text}', which is no finite number"):
        only([1.0, 2.0])({"c": ["1", text]})


def test_a_few_errors_do_not_turn_numbers_into_text() -> None:
    numbers = [str(i) for i in range(ROWS)]
    numbers[6] = "n/k"
    with pytest.raises(ValueError, match="column 'c': row 7 holds 'n/k', which is no finite numb"):
        fit_encoder({"c": numbers})
    grades = ["1", "2", "3"] * 15 + ["3a"] * 5  # few values, but one of them is no number
    assert encoded(grades)[0] == ["c = 1", "c = 2", "c = 3", "c = 3a"]


# Truth values


@pytest.mark.parametrize(
    "column", [[True, False] * 4, ["True", "False"] * 4, ["TRUE", "false"] * 4], ids=str
)
def test_truth_values(column: Any) -> None:
    encoder = only(column)
    assert encoder.names == ["c"]
    for later in (column, np.array(column), [1, 0] * 4, ["1", "0.0"] * 4):
        np.testing.assert_array_equal(encoder({"c": later})[:, 0], [1, 0] * 4)
    with pytest.raises(ValueError, match="row 1 holds 2, which is no boolean"):
        encoder({"c": np.array([2], object)})


# Dates


@pytest.mark.parametrize(
    "form",
    ["%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%MZ", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y %H:%M"],
)
def test_dates_as_text(form: str) -> None:
    days = np.datetime64("2024-02-25", "us") + np.arange(ROWS).astype("m8[D]")
    texts = [day.strftime(form) for day in days.tolist()]
    names, features, fate = encoded(texts)
    expected = encoded(days)
    assert names == expected[0] == ["c", "c (weekday, sine)", "c (weekday, cosine)"]
    np.testing.assert_array_equal(features, expected[1])
    assert fate.startswith(expected[2])
    assert features[0, 0] == 19778
    np.testing.assert_array_equal(only(texts)({"c": days}), features)
    with pytest.raises(ValueError, match="row 1 holds 'today', which is no date"):
        only(texts)({"c": "today"})


def test_times_are_those_of_utc() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    local = [datetime.datetime(2024, 1, 1, hour, tzinfo=zone) for hour in range(2, 10)]
    _, features, _ = encoded(local)
    assert features[0, 0] == 19723
    _, as_text, _ = encoded([each.isoformat() for each in local])
    np.testing.assert_array_equal(as_text, features)


# Arrays of pandas


def pandas_columns() -> dict[str, tuple[Any, list[Any]]]:
    """Columns of pandas and the plain values that they hold."""
    pd = pytest.importorskip("pandas")
    numbers, truths = [1, 2, None, 4] * 5, [True, False, None, True] * 5
    words = ["x", "y", None, "y"] * 5
    days = [datetime.datetime(2024, 1, 1) + datetime.timedelta(days=i) for i in range(19)]
    return {
        "Int64": (pd.array(numbers, "Int64"), numbers),
        "Float32": (pd.array(numbers, "Float32"), numbers),
        "boolean": (pd.array(truths, "boolean"), truths),
        "string": (pd.array(words, "string"), words),
        "category": (pd.Categorical(words), words),
        "datetime": (pd.to_datetime([*days, None]), [*days, None]),
        "zone": (pd.to_datetime([*days, None], utc=True), [*days, None]),
        "timedelta": (pd.to_timedelta(numbers, "D"), numbers),
        "sparse": (pd.arrays.SparseArray([0.0, 1.0] * 10), [0.0, 1.0] * 10),
    }


@pytest.mark.parametrize(
    "name",
    [
        "Int64",
        "Float32",
        "boolean",
        "string",
        "category",
        "datetime",
        "zone",
        "timedelta",
        "sparse",
    ],
)
def test_columns_of_pandas(name: str) -> None:
    pd = pytest.importorskip("pandas")
    column, plain = pandas_columns()[name]
    frame = pd.DataFrame({"c": pd.Series(column)})
    encoder, fates = fit_encoder(frame)
    expected, expected_fates = fit_encoder({"c": plain})
    assert (encoder.columns, fates) == (expected.columns, expected_fates)
    np.testing.assert_array_equal(encoder(frame), expected({"c": plain}))
    np.testing.assert_array_equal(encoder({"c": plain}), expected(frame))
    np.testing.assert_array_equal(encoder(frame.iloc[3].to_dict()), encoder(frame)[3:4])


def test_a_row_of_a_frame_is_taken_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Getting out every column would take longer than to encode it; the bits are the same."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({name: column for name, (column, _) in pandas_columns().items()})
    frame["levels"] = pd.Categorical([1, 2, 3, None] * 5)
    for table in (frame, frame[["Int64", "Float32"]], frame[["levels"]].assign(whole=range(20))):
        encoder, _ = fit_encoder(table)
        features = encoder(table)
        with monkeypatch.context() as patch:
            patch.setattr(pd.DataFrame, "__getitem__", lambda *_: pytest.fail("took a column"))
            for row in range(len(table)):
                alone = encoder(table.iloc[row : row + 1])
                np.testing.assert_array_equal(alone, features[row : row + 1])


def test_a_name_that_two_columns_have_is_refused_in_one_row_too() -> None:
    pd = pytest.importorskip("pandas")
    twice = pd.DataFrame([[1.0, 2.0]], columns=["c", "c"])
    with pytest.raises(ValueError, match="column 'c' must have one value per row"):
        only(range(20))(twice)


def test_a_categorical_dtype_makes_numbers_levels() -> None:
    pd = pytest.importorskip("pandas")
    encoder = only(pd.Series([1, 2, 3] * 5, dtype="category"))
    assert encoder.names == ["c = 1", "c = 2", "c = 3"]
    np.testing.assert_array_equal(encoder({"c": [1, 2.0, "3"]}), np.eye(3))


# What is refused


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1.0, np.inf], "column 'c': row 2 holds inf, which is no finite number"),
        (np.array([1, np.inf], object), "column 'c': row 2 holds inf, which is no finite number"),
        ([1.0, 10**400], "column 'c': row 2 holds 1000"),
        ([1 + 2j, 0], r"column 'c': row 1 holds \(1\+2j\), a complex"),
        ([b"x", b"y"], "column 'c': row 1 holds b'x', a bytes"),
        ([{"k": 1}, None], "column 'c': row 1 holds {'k': 1}, a dict"),
        ([datetime.date(2024, 1, 1), "x"], "column 'c' holds both dates and other values"),
        (np.zeros((2, 2)), r"column 'c' must have one value per row, got shape \(2, 2\)"),
    ],
    ids=lambda value: value[:25] if isinstance(value, str) else "",
)
def test_values_that_are_refused(column: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_encoder({"c": column})
    if np.ndim(column) == 2 or "date" in message:
        return
    with pytest.raises(ValueError, match=message):
        only([1.0, 2.0])({"c": column})


def test_all_columns_with_problems_are_named() -> None:
    with pytest.raises(ValueError, match=r"'a'.*; column 'b'.*; column 'c'"):
        fit_encoder({"a": [np.inf, 1.0], "b": [b"", b""], "c": [[1], [2]], "d": [1.0, 2.0]})
    encoder, _ = fit_encoder({"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [1.0, 2.0]})
    message = "there is no column 'a'; column 'b': row 1 holds 'x', which is no finite number"
    with pytest.raises(ValueError, match=message):
        encoder({"b": ["x"], "c": [1.0]})
    with pytest.raises(ValueError, match="columns must be equally long, got 1 and 2"):
        encoder({"a": [1.0], "b": [1.0, 2.0], "c": [1.0]})


def test_sparse_columns_are_refused() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match="column 'c' must be dense, got a sparse csr_array"):
        fit_encoder({"c": sparse.csr_array([[1.0], [2.0]])})


NUMBER: dict[str, Any] = {"name": "c", "kind": "number", "parts": ["value"], "fill": 0.0}
LEVELS: dict[str, Any] = {"name": "d", "levels": ["a", "b"], "counts": [5, 5], "others": 0}


@pytest.mark.parametrize(
    "column",
    [
        {},
        {"name": "c"},
        3,
        NUMBER | {"kind": "code"},
        NUMBER | {"parts": ["code"]},
        NUMBER | {"parts": 3},
        NUMBER | {"fill": "x"},
        NUMBER | {"fill": math.inf},
        NUMBER | {"code": "print()"},
        NUMBER | {"name": ["c"]},
        LEVELS | {"counts": [5]},
        LEVELS | {"levels": ["a"], "counts": [5]},
        LEVELS | {"counts": ["5", "x"]},
        LEVELS | {"others": None},
        LEVELS | {"levels": [["a"], "b"]},
        LEVELS | {"code": "print()"},
    ],
    ids=str,
)
def test_damaged_columns(column: Any) -> None:
    assert Encoder([NUMBER, LEVELS]).names == ["c", "d = b"]
    with pytest.raises(ValueError, match="Encoder: columns must be those of an encoder"):
        Encoder([column])
