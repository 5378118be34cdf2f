"""Training loops of other libraries: layers and their penalty in one smoke test each.

They are not installed with the tests: `pip install lightning accelerate transformers`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")
nn, functional = torch.nn, torch.nn.functional

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore"),  # of these libraries themselves
]


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


def network() -> Any:
    return nn.Sequential(adapter.LMKANBlock(3, 8, 6), adapter.LMKANLinear(8, 1, 6))


def rows() -> tuple[Any, Any]:
    x = torch.randn(256, 3)
    return x, x[:, :1] * x[:, 1:2] + x[:, 2:].sin()


def batches() -> Any:
    data = torch.utils.data
    return data.DataLoader(data.TensorDataset(*rows()), batch_size=64, shuffle=True)


def loss(model: Any, x: Any, y: Any) -> Any:
    return functional.mse_loss(model(x), y) + 1e-4 * adapter.hessian_penalty(model)


def has_learned(model: Any, start: Any) -> bool:
    """Tell whether the error fell to half of what it was at the start."""
    x, y = rows()
    errors = [functional.mse_loss(each.eval()(x), y).item() for each in (model, start)]
    return errors[0] < errors[1] / 2


def test_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator, start = accelerate.Accelerator(cpu=True), network()
    model = network()
    model.load_state_dict(start.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    model, optimizer, loader = accelerator.prepare(model, optimizer, batches())
    for _ in range(30):
        for x, y in loader:
            optimizer.zero_grad()
            accelerator.backward(loss(model, x, y))
            optimizer.step()
    assert has_learned(accelerator.unwrap_model(model), start)


def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, x: Any) -> Any:
            return self.network(x)

        def training_step(self, batch: Any, _: int) -> Any:
            return loss(self.network, *batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 0.03)

    module, start = Module(), network()
    start.load_state_dict(module.network.state_dict())
    trainer = lightning.Trainer(
        max_epochs=30,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches())
    assert has_learned(module.network, start)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Module.load_from_checkpoint(tmp_path / "last.ckpt").eval()
    x, _ = rows()
    torch.testing.assert_close(again(x), module.eval()(x), rtol=0, atol=0)


def test_trainer_of_hugging_face(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, x: Any, labels: Any) -> dict[str, Any]:
            return {"loss": loss(self.network, x, labels), "logits": self.network(x)}

    model, start = Model(), network()
    start.load_state_dict(model.network.state_dict())
    x, y = rows()
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=30,
        per_device_train_batch_size=64,
        learning_rate=0.03,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    data = [{"x": features, "labels": target} for features, target in zip(x, y, strict=True)]
    transformers.Trainer(model=model, args=settings, train_dataset=data).train()
    assert has_learned(model.network, start)
