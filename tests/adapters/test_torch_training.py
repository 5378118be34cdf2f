"""Chains of blocks and their training: standardising, random numbers, the state of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tqdm")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")
training = pytest.importorskip("lmkan_cupy.adapters.torch.training")

one_thread = training.trainer.one_thread
nn = torch.nn


def network(columns: int = 1) -> Any:
    return training.TableNetwork([columns, 4, 1], 4, training.BOUND, residual="linear")


def parameters(module: Any) -> Any:
    return torch.cat([each.flatten() for each in module.state_dict().values()])


@pytest.mark.parametrize(("columns", "first_lr"), [(3, 0.3), (16, 0.3), (64, 0.075)])
def test_the_first_layer_learns_more_slowly_from_many_features(
    columns: int, first_lr: float
) -> None:
    model = network(columns)
    groups = model.parameter_groups(0.3)
    lrs = {id(each): group["lr"] for group in groups for each in group["params"]}
    assert lrs.keys() == {id(each) for each in model.network.parameters()}
    for block, lr in zip(model.network, (first_lr, 0.3), strict=True):
        assert lrs[id(block.layer.tables)] == pytest.approx(lr)
        assert lrs[id(block.layer.weight)] == pytest.approx(lr * 10 / 3)


class TestStandardising:
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_ordinary_columns_to_the_bit(self, rng: np.random.Generator, order: Any) -> None:
        values = rng.normal([0, 1e-9, -5, 1e7], [1, 1e-9, 1e3, 1], (333, 4)).copy(order)
        model = network(4)
        model.standardise_features_by(values)
        np.testing.assert_array_equal(model.feature_mean, values.mean(axis=0))
        np.testing.assert_array_equal(model.feature_scale, values.std(axis=0))
        expected = (values - values.mean(axis=0)) / values.std(axis=0)
        np.testing.assert_array_equal(model.standardised(values), expected.astype(np.float32))

    @pytest.mark.parametrize("value", [0.1, 0.0, -3.5, 123456789.1, 1e-200 / 3])
    def test_a_constant_column(self, value: float) -> None:
        """Its standard deviation rounds to about 1e-16 of it; later rows may be rounded."""
        model = network(3)
        model.standardise_features_by(np.full((442, 3), value))
        later = np.full((2, 3), [[value], [value * (1 + 1e-7)]])
        np.testing.assert_allclose(model.standardised(later), 0, atol=1.1e-7)

    def test_a_column_that_is_constant_but_for_rounding(self) -> None:
        model = network()
        model.standardise_features_by(np.array([[0.1 + 0.2], [0.3], [0.3]]))
        np.testing.assert_allclose(model.standardised(np.array([[0.3], [0.3000001]])), 0, atol=1e-6)

    @pytest.mark.parametrize("power", [664, -558, 1020], ids=["e200", "e-168", "max"])
    def test_numbers_of_any_size(self, rng: np.random.Generator, power: int) -> None:
        """Their squares are infinite, or 0."""
        values = rng.integers(-8, 8, (50, 1)).astype(float)
        model, scaled = network(), network()
        model.standardise_targets_by(values)
        scaled.standardise_targets_by(np.ldexp(values, power))
        torch.testing.assert_close(
            scaled.standardised_targets(np.ldexp(values, power)),
            model.standardised_targets(values),
            rtol=0,
            atol=0,
        )
        assert scaled.error_in_units(0.25) == np.ldexp(model.error_in_units(0.25), power)

    def test_the_smallest_numbers(self) -> None:
        """Their standard deviation rounds to 0."""
        model, values = network(), np.array([[5e-324], [1e-323]])
        model.standardise_targets_by(values)
        assert torch.isfinite(model.standardised_targets(values)).all()

    def test_errors_over_several_targets(self) -> None:
        model = training.TableNetwork([1, 2], 4, training.BOUND)
        model.standardise_targets_by(np.array([[-3.0, 0.0], [3.0, 8.0]]))
        assert model.error_in_units(2.0) == pytest.approx(np.sqrt(2 * (3**2 + 4**2) / 2))

    def test_rows_in_any_memory_order(self, rng: np.random.Generator) -> None:
        rows, model = rng.normal(size=(50, 3)), network(3)
        expected = model.predict(rows)
        views: list[Any] = [
            rows[::-1][::-1],
            np.asfortranarray(rows),
            rows[:, ::-1].copy()[:, ::-1],
            rows.astype(">f8"),
            rows.tolist(),
        ]
        rows.flags.writeable = False
        for view in [*views, rows]:
            np.testing.assert_array_equal(model.predict(view), expected)
        np.testing.assert_array_equal(model.predict(rows[::-1]), expected[::-1])

    def test_masked_rows_are_refused(self) -> None:
        rows = np.ma.masked_less(np.zeros((5, 3)), 1)
        text = "TableNetwork: features must not have masked elements, got 15"
        with pytest.raises(ValueError, match=text):
            network(3).predict(rows)


CHAINS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda generator: training.block_chain(
        (5, 7, 3), 6, training.BOUND, residual="linear", generator=generator
    ),
    "no-branch": lambda generator: training.block_chain(
        (5, 3), 5, training.BOUND, residual=None, generator=generator
    ),
}


class TestRandomNumbers:
    """They are those of torch's own generator, seeded alike, which itself is left alone."""

    @pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
    def test_of_a_chain(self, make: Callable[[Any], Any]) -> None:
        torch.manual_seed(3)
        expected = parameters(make(None))
        before = torch.get_rng_state()
        chain = make(torch.Generator().manual_seed(3))
        assert torch.equal(parameters(chain), expected)
        assert torch.equal(torch.get_rng_state(), before)

    def test_are_those_of_the_constructors(self) -> None:
        torch.manual_seed(3)
        options = {"bound": training.BOUND, "residual": "linear"}
        blocks = [adapter.LMKANBlock(i, o, 6, **options) for i, o in [(5, 7), (7, 3)]]
        torch.manual_seed(3)
        chain = CHAINS["linear"](None)
        assert repr(chain) == repr(nn.Sequential(*blocks))
        assert torch.equal(parameters(chain), parameters(nn.Sequential(*blocks)))

    def test_of_a_network(self) -> None:
        before = torch.get_rng_state()
        first, same, other = (
            training.TableNetwork([5, 7, 3], 6, training.BOUND, seed=seed) for seed in (0, 0, 1)
        )
        assert torch.equal(parameters(first), parameters(same))
        assert (parameters(first) != parameters(other)).any()
        assert torch.equal(torch.get_rng_state(), before)

    def test_of_an_mlp(self) -> None:
        mlp = pytest.importorskip("lmkan_cupy.adapters.fitting.mlp")
        torch.manual_seed(3)
        layers = nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 1)
        expected = parameters(nn.Sequential(*layers))
        before = torch.get_rng_state()
        made = mlp.make_mlp([5, 7, 1], generator=torch.Generator().manual_seed(3))
        assert torch.equal(parameters(made), expected)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Torch's number of threads, of this one and of all that begin later, is 3."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def in_new_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


@pytest.mark.usefixtures("three_threads")
class TestOneThread:
    def test_is_for_the_calling_thread(self) -> None:
        with one_thread():
            assert torch.get_num_threads() == 1
            assert in_new_thread(torch.get_num_threads) == 3
        assert torch.get_num_threads() == 3
        assert in_new_thread(torch.get_num_threads) == 3

    def test_trainings_that_overlap(self) -> None:
        """This thread begins first and ends first."""
        barrier = Barrier(2)
        numbers: list[int] = []

        def other() -> None:
            with one_thread():
                barrier.wait()
                barrier.wait()
                numbers.append(torch.get_num_threads())
            numbers.append(torch.get_num_threads())

        thread = Thread(target=other)
        with one_thread():
            thread.start()
            barrier.wait()
        assert torch.get_num_threads() == 3
        barrier.wait()
        thread.join()
        assert numbers == [1, 3]
        assert in_new_thread(torch.get_num_threads) == 3

    def test_a_thread_with_a_number_of_its_own(self) -> None:
        def own() -> int:
            torch.set_num_threads(2)
            torch_s_number = in_new_thread(torch.get_num_threads)
            with one_thread():
                pass
            assert in_new_thread(torch.get_num_threads) == torch_s_number
            return int(torch.get_num_threads())

        assert in_new_thread(own) == 2
        assert torch.get_num_threads() == 3

    def test_whatever_is_raised(self) -> None:
        with pytest.raises(KeyboardInterrupt), one_thread():
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 3

    def test_where_no_thread_can_begin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As while Python ends, from 3.12 on."""

        def refused(self: Thread) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

        monkeypatch.setattr(Thread, "start", refused)
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3


@pytest.fixture(params=["dtype", "device"])
def other_defaults(request: pytest.FixtureRequest) -> Iterator[None]:
    """What is made without a dtype or a device is float64, or has no memory."""
    if request.param == "dtype":
        torch.set_default_dtype(torch.float64)
    else:
        torch.set_default_device("meta")
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.usefixtures("other_defaults")
class TestOtherDefaults:
    def test_chains_and_networks(self) -> None:
        for each in network().state_dict().values():
            assert each.device.type == "cpu"
        assert network().predict(np.zeros((2, 1))).shape == (2, 1)

    def test_the_penalty_of_a_model_without_layers(self) -> None:
        penalty = adapter.hessian_penalty(nn.ReLU())
        assert (penalty.device.type, penalty.dtype) == ("cpu", torch.float32)

    def test_layers_follow_the_defaults(self) -> None:
        """As torch's own layers do; the knots of the authors' class are always float32."""
        theirs, ours = nn.Linear(4, 3), adapter.LMKANLinear(4, 3, residual="linear")
        for each in ours.parameters():
            assert (each.dtype, each.device) == (theirs.weight.dtype, theirs.weight.device)
        assert adapter.LMKAN2DLayer(4, 4, 3).borders.dtype == torch.float32
