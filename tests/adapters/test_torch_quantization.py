"""What torch's dynamic quantisation does to a model with lmKAN layers."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch's own
def test_it_converts_linear_layers_and_leaves_ours() -> None:
    quantization = pytest.importorskip("torch.ao.quantization")
    torch.manual_seed(0)
    block = adapter.LMKANBlock(4, 6, 4, residual="linear").eval()
    model = torch.nn.Sequential(block, torch.nn.Linear(6, 3)).eval()
    quantized, x = quantization.quantize_dynamic(model), torch.randn(9, 4)
    assert not isinstance(quantized[1], torch.nn.Linear)
    assert torch.equal(quantized[0](x), block(x))
    before = block(x)
    quantized[0].layer.fold_().half()
    torch.testing.assert_close(quantized[0](x), before, rtol=0, atol=1e-2)
