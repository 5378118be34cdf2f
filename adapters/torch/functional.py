"""``lmkan`` and the penalty as functions of tensors: they check, choose the engine and run it."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lmkan_cupy.windows import Window

from . import operators, plain_torch

#: None computes on the engine of the tensors' device, "torch" in plain torch operations.
Engine: TypeAlias = Literal["torch"] | None

#: Device types with an engine. Meta tensors have only shapes, which need none.
_DEVICES = ("cpu", "cuda", "meta")

HALF = (torch.float16, torch.bfloat16)


def lmkan(x: Tensor, tables: Tensor, *, engine: Engine = None) -> Tensor:
    """Evaluate an lmKAN layer; differentiable twice in ``x`` and ``tables``.

    First derivatives work in forward and reverse mode, second derivatives with at most one of them
    in forward mode.

    Parameters
    ----------
    x : Tensor [..., I]
        float32, float64, or float16 or bfloat16, which are widened to float32.
    tables : Tensor [P, S, ..., S, O]
        With one axis of knots for each variable of the inner functions, 1, 2 or 3. On the
        device of ``x`` and in its dtype, or float16 or bfloat16 with float32 ``x``. Half tables are
        summed in float32; on the CPU, bfloat16 ones are widened to float32 first.
    engine : {None, "torch"}
        None computes on the engine of the tensors' device, CPU or CUDA. "torch" computes the same
        function in torch's own operations, for other devices. It is slower, takes more memory and
        can be differentiated any number of times. ``torch.onnx.export`` always gets operations of
        torch.

    Returns
    -------
    Tensor [..., O]
        In the dtype of ``x``; under autocast in the autocast dtype. Of a subclass of Tensor if an
        argument is.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices do not fit: see :func:`lmkan_cupy.forward`; or if a tensor is
        sparse.
    RuntimeError
        If the CUDA engine cannot run; the message says what to do.
    NotImplementedError
        For further derivatives, which engine "torch" has.
    """
    check_engine("lmkan", engine)
    if to_onnx():
        return _evaluate(plain_torch.forward_for_onnx, x, tables, on_engine=False)
    if engine == "torch":
        return _evaluate(plain_torch.forward, x, tables, on_engine=False)
    return _evaluate(operators.forward, x, tables)


def convolve(x: Tensor, tables: Tensor, window: Window, groups: int) -> Tensor:
    """Evaluate :func:`lmkan` on all windows of ``x`` [..., C, H, W] on the CPU engine.

    It gives [..., O, H', W'] and has the same derivatives: see :func:`lmkan_cupy.conv2d_forward`.
    """
    rows, columns = window.margins
    arguments = window.kernel_size, window.stride, (*rows, *columns), window.dilation, groups
    return _evaluate(lambda *layer: operators.conv2d_forward(*layer, *arguments), x, tables)


def _evaluate(
    evaluate: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    tables: Tensor,
    *,
    on_engine: bool = True,
) -> Tensor:
    """Evaluate a layer in the dtypes that its tensors and autocast ask for."""
    _check_same_device(x, tables)
    _check_dense("x", x)
    _check_dense("tables", tables)
    # Meta tensors have no autocast, and torch raises if it is asked.
    is_autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    if x.dtype in HALF and x.dtype == tables.dtype and not is_autocast:
        return _evaluate(evaluate, x.float(), tables, on_engine=on_engine).to(x.dtype)
    if on_engine:
        check_device("x", x)
        tables = as_engine_takes(tables)
    # Here and not only in the dispatcher, which for torch.func would come to autocast last.
    if is_autocast:
        return operators.under_autocast(evaluate, x, tables)
    return evaluate(x, tables)


def hessian_penalty_of(tables: Tensor, *, engine: Engine = None) -> Tensor:
    """Return the roughness of ``tables`` [P, S, ..., O], 0-d: :func:`lmkan_cupy.hessian_penalty`.

    It can be differentiated twice. If ``tables`` require a gradient, it is computed in the same
    pass and kept for the backward.
    """
    if engine == "torch":
        return plain_torch.hessian_penalty(tables)
    check_device("tables", tables)
    need_grad = torch.is_grad_enabled() and tables.requires_grad
    penalty, _ = operators.hessian_penalty(as_engine_takes(tables), need_grad)
    # The penalty of sharded tables is a DTensor; a loss needs a plain tensor, the sum of its parts.
    return penalty.full_tensor() if hasattr(penalty, "full_tensor") else penalty


def as_engine_takes(tables: Tensor) -> Tensor:
    """Return tables as an engine takes them: on the CPU, bfloat16 is widened to float32."""
    is_widened = tables.dtype == torch.bfloat16 and tables.device.type == "cpu"
    return tables.float() if is_widened else tables


def to_onnx() -> bool:
    """Tell whether this is traced for ONNX, which knows only standard operators."""
    return torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export()


def check_engine(function: str, engine: object) -> None:
    """Require the name of an engine."""
    if engine not in (None, "torch"):
        raise ValueError(f"{function}: engine must be None or 'torch', got {engine!r}")


def check_device(name: str, tensor: Tensor) -> None:
    """Require a device with an engine."""
    if tensor.device.type not in _DEVICES:
        raise TypeError(
            f"lmkan: {name} is on {tensor.device}, which has no engine: use engine='torch', or "
            f"{name}.cpu()"
        )


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"lmkan: {name} must be a dense tensor, got one of layout {tensor.layout}: "
            f"{name}.to_dense()"
        )


def _check_same_device(x: Tensor, tables: Tensor) -> None:
    if x.device != tables.device:
        raise TypeError(
            f"lmkan: x must be on {tables.device} as tables is, got a tensor on {x.device}"
        )
