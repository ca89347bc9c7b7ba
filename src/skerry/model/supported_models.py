"""Check that subnets can be made of a model at all, before anything runs."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter


def check_supported(model: nn.Module) -> None:
    """Check that ``model`` has only dense parameters, and buffers with values, each in memory of its own.

    Raises:
        ValueError: it has something else; the message names the tensor or module and what to do.
    """
    for name, module in model.named_modules():
        where = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{where}: compiled to TorchScript, expected the Python module it was made from")
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise ValueError(f"{where}: a quantized module has no parameters to train; use the float model")
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.requires_grad and not value.is_leaf:
                raise ValueError(
                    f"{name + '.' if name else ''}{key}: a tensor computed from others, expected a leaf; compute it in "
                    "forward (for a norm of weights: torch.nn.utils.parametrizations), or delete it if forward left it"
                )
    at: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ValueError(f"{name}: not initialized yet (a lazy module); run the model once on example inputs first")
        if tensor.is_quantized:
            raise ValueError(f"{name}: quantized, expected floating point; use the float model")
        if tensor.layout != torch.strided:
            if not isinstance(tensor, nn.Parameter):
                continue
            raise ValueError(f"{name}: layout {tensor.layout}, expected a dense tensor")
        if not tensor.is_leaf:
            raise ValueError(f"{name}: not a leaf tensor (it was computed from others); make it an nn.Parameter")
        if tensor.numel() and not tensor.is_meta:
            other = at.setdefault(tensor.data_ptr(), name)
            if other != name:
                raise ValueError(f"{name}: shares memory with {other}, expected one nn.Parameter under both names")
