"""Where estimators and `fit` train: devices that are not there, and what goes to one that is."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
torch = pytest.importorskip("torch")

from fits import QUICK, check_refusal, dataset, table, write_csv  # noqa: E402
from lmkan_cupy.adapters import sklearn as estimators  # noqa: E402
from lmkan_cupy.adapters.fitting import fit as fit_table  # noqa: E402
from lmkan_cupy.adapters.sklearn import LMKANClassifier, LMKANRegressor  # noqa: E402
from lmkan_cupy.adapters.torch import training  # noqa: E402

BOTH = pytest.mark.parametrize("kind", [LMKANRegressor, LMKANClassifier])


def rows() -> tuple[Any, Any]:
    x = np.random.default_rng(0).normal(size=(100, 3))
    return x, (x[:, 0] > 0).astype(np.int64)


def has_gpus(monkeypatch: pytest.MonkeyPatch, count: int, obstacle: str | None = None) -> None:
    """As if torch found so many GPUs, and the CUDA engine could or could not run on them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(training.device, "cuda_obstacle", lambda: obstacle)


# What is not there


@BOTH
@pytest.mark.parametrize(
    ("gpus", "device", "message"),
    [
        (0, "gpu", "device must be None, 'cpu', 'cuda' or 'cuda:' and a number, got 'gpu'"),
        (0, "cuda", "torch finds no device 'cuda', only 'cpu'"),
        (2, "cuda:2", "torch finds no device 'cuda:2', only 'cpu', 'cuda:0', 'cuda:1'"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_anything_runs(
    kind: Any, gpus: int, device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_gpus(monkeypatch, gpus)
    with pytest.raises(ValueError, match=f"^{kind.__name__}: {message}$"):
        kind(device=device).fit(None, None)


def test_a_gpu_that_the_engine_cannot_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpus(monkeypatch, 1, "CuPy is missing: install it")
    with pytest.raises(ValueError, match="device 'cuda' cannot be used: CuPy is missing: install"):
        LMKANRegressor(device="cuda").fit(*rows())


@pytest.mark.parametrize("device", ["gpu", "cuda:7"])
def test_fit_refuses_devices_as_the_estimators(
    device: str, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_gpus(monkeypatch, 1)
    with pytest.raises(ValueError, match="device") as caught:
        training.device_of("fit", device)
    write_csv(table(), "data.csv")  # type: ignore[arg-type]
    check_refusal(command("fit", "data.csv", "--device", device), str(caught.value))


def test_names_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpus(monkeypatch, 2)
    names = {"cpu": "cpu", None: "cpu", "cuda": "cuda:0", "cuda:1": "cuda:1"}
    assert {each: str(training.device_of("", each)) for each in names} == names


# What is there: "meta" in its place, which holds no data


def to_meta(monkeypatch: pytest.MonkeyPatch, stays: str = "") -> list[set[str]]:
    """Let trainings run on "meta"; return a list of the devices of all that they are given.

    A network cannot be copied back from there: it is emptied on the CPU, but for one that `stays`.
    """
    devices: list[set[str]] = []

    def recorded(self: Any, label: str, network: Any, groups: Any) -> Any:
        tensors = [*network.parameters(), *network.buffers(), *self.validation]
        tensors += [self.batches.features, self.batches.target]
        tensors += [each for group in groups for each in group["params"]]
        devices.append({each.device.type for each in tensors})
        if label != stays:
            for each in network.to_empty(device="cpu").state_dict().values():
                each.zero_()
        return training.Training(True, 1, torch.zeros(1), 0.0, ())

    monkeypatch.setattr(training.Trainer, "train", recorded)
    for module in (estimators, fit_module()):
        monkeypatch.setattr(module, "device_of", lambda _, name: torch.device(name))
    return devices


def fit_module() -> Any:
    return import_module("lmkan_cupy.adapters.fitting.fit")


@BOTH
def test_rows_and_network_go_to_the_device(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = to_meta(monkeypatch)
    x, y = rows()
    options: dict[str, Any] = {"width": 4, "warm_start": True, "device": "meta"}
    fitted = kind(**options).fit(x, y)
    fitted.fit(x, y, np.arange(100))
    fitted.fit(x, y, X_val=x, y_val=y)
    assert devices == [{"meta"}] * 3
    assert {each.device.type for each in fitted.model_.state_dict().values()} == {"cpu"}


def test_fit_takes_both_networks_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = to_meta(monkeypatch)
    monkeypatch.setattr(fit_module(), "_memory_of", lambda _: np.inf)
    fit_table(dataset(), device="meta", **QUICK)
    assert devices == [{"meta"}] * 2


@pytest.mark.parametrize("label", ["lmKAN", "MLP"])
def test_networks_are_taken_back(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    to_meta(monkeypatch, stays=label)
    monkeypatch.setattr(fit_module(), "_memory_of", lambda _: np.inf)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        fit_table(dataset(), device="meta", **QUICK)


# On a GPU


@pytest.mark.gpu
@BOTH
def test_a_gpu_gives_nearly_the_same_numbers(kind: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this torch cannot use the GPU")
    x, y = rows()
    options: dict[str, Any] = {"width": 4, "random_state": 0, "epochs": 20}
    expected = kind(**options).fit(x, y)
    fitted = kind(**options, device="cuda").fit(x, y)
    assert {each.device.type for each in fitted.model_.state_dict().values()} == {"cpu"}
    assert fitted.loss_curve_ == pytest.approx(expected.loss_curve_, rel=0.01)
