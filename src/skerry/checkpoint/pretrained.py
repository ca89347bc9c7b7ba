"""Save a trained model of transformers as ``from_pretrained`` reads it.

A model whose architecture is unchanged is saved as any other. Narrow nets, several of them, and norms over groups need
code: ``modeling_nets.py`` goes into the folder, too.
"""

import copy
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skerry.model.grouped_norm import GroupedNorm
from skerry.model.inputs import tensors_of
from skerry.model.tokenizer import check_tokenizer
from skerry.randomness import own_random_state
from skerry.subnet.kept_numbers import kept_numbers
from skerry.subnet.side_by_side import nets_of

_KEPT = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id")
"""What the config of several nets has of that of the first."""


def save_pretrained(model: nn.Module, folder: Path | str, tokenizer: Any = None) -> None:
    """Write ``model`` to ``folder`` so that ``AutoModelFor....from_pretrained(folder)`` of transformers loads it.

    Narrow nets and norms over groups need ``trust_remote_code=True``: the code is in the folder. They are first
    compared with ``model`` on a few inputs.

    Args:
        model: as training returns it (``result.model``): a model of transformers, narrow or not, or several.
        folder: made if it is missing; files of the same names are replaced.
        tokenizer: of transformers, saved beside it; None: none.

    Raises:
        ValueError: the model is not of transformers, a narrow net runs by a patch, what is written computes something
            else, or the tokenizer does not fit.

    Example::

        result = skerry.train(model, ..., algorithm=skerry.relay(workers=4))
        save_pretrained(result.model, "trained", tokenizer)
        AutoModelForCausalLM.from_pretrained("trained", trust_remote_code=True)
    """
    nets = [*nets_of(model).values()]
    for net in nets:
        if not hasattr(net, "save_pretrained") or not hasattr(net, "config"):
            raise ValueError(
                f"model: {type(net).__name__} is not a model of transformers, so it has no save_pretrained folder; "
                "use result.export(folder)"
            )
    if tokenizer is not None:
        check_tokenizer(nets[0], tokenizer)
    written = _as_pretrained(nets)
    if written is not nets[0]:
        _check_same(model, written)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as draft:
        written.save_pretrained(draft)
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
        for path in Path(draft).iterdir():
            path.replace(folder / path.name)


def _as_pretrained(nets: list[Any]) -> Any:
    """Return a model of transformers that computes what ``nets`` do; the only net itself, if it is unchanged."""
    described = [_described(net) for net in nets]
    if len(nets) == 1 and not any(described[0][key] for key in ("shapes", "numbers", "norms")):
        return nets[0]
    from skerry.model.modeling_nets import Nets, NetsConfig  # needs transformers

    architecture = described[0]["config"]["architectures"][0]
    NetsConfig.register_for_auto_class()
    Nets.register_for_auto_class(_auto_class(architecture))
    kept = {key: value for key in _KEPT if (value := getattr(nets[0].config, key, None)) is not None}
    written = Nets(NetsConfig(nets=described, **kept)).to(nets[0].dtype)
    if getattr(nets[0], "generation_config", None) is not None:
        written.generation_config = copy.deepcopy(nets[0].generation_config)
    for own, net in zip(written.nets, nets, strict=True):
        own.load_state_dict(net.state_dict())
    return written.train(nets[0].training)


def _described(net: Any) -> dict[str, Any]:
    """Return what ``modeling_nets.made`` needs to make ``net``."""
    with torch.device("meta"), own_random_state():
        plain = type(net)(copy.deepcopy(net.config))
    modules, full = dict(plain.named_modules()), dict(plain.named_parameters(remove_duplicate=False))
    numbers: dict[str, dict[str, int]] = {}
    norms: dict[str, tuple[int, float, bool, float]] = {}
    for name, module in net.named_modules():
        if "forward" in vars(module) or module._forward_pre_hooks:
            raise ValueError(
                f"{name} ({type(module).__name__}) runs narrow by a patch, which no file can describe; use "
                "result.export(folder)"
            )
        if isinstance(module, GroupedNorm):
            norms[name] = (module.group_width, module.eps, module.centred, module.offset)
            continue
        were = kept_numbers(modules[name])
        own = {path: n for path, n in kept_numbers(module).items() if were.get(path) != n}
        numbers |= {name: own} if own else {}
    config = {**net.config.to_dict(), "architectures": [type(net).__name__]}
    own_shapes = {name: list(p.shape) for name, p in net.named_parameters(remove_duplicate=False)}
    shapes = {name: shape for name, shape in own_shapes.items() if shape != list(full[name].shape)}
    return {"config": config, "shapes": shapes, "numbers": numbers, "norms": norms}


def _auto_class(architecture: str) -> str:
    """Return the name of the auto class of transformers for a class such as GPT2LMHeadModel or BertForMaskedLM."""
    import transformers

    task = re.sub(r"^.*?(?=For[A-Z])", "", architecture)
    name = f"AutoModel{task}" if task.startswith("For") else "AutoModelForCausalLM"
    return name if hasattr(transformers, name) else "AutoModel"


@torch.no_grad()
def _check_same(model: nn.Module, written: Any) -> None:
    """Raise ValueError unless what is written computes what ``model`` does."""
    config: Any = next(iter(nets_of(model).values())).config
    rng = torch.Generator().manual_seed(0)
    if written.main_input_name == "pixel_values":
        inputs = torch.randn(2, config.num_channels, config.image_size, config.image_size, generator=rng)
    else:
        inputs = torch.randint(config.vocab_size, (4, 2), generator=rng)  # any model has two positions
    inputs = inputs.to(next(model.parameters()).device)
    training = [module for net in (model, written) for module in net.modules() if module.training]
    expected, got = (next(tensors_of(net.eval()(inputs).logits)) for net in (model, written.to(inputs.device)))
    for module in training:
        module.training = True
    if not torch.allclose(got, expected, rtol=1e-3, atol=1e-5):
        raise ValueError(
            f"model: as transformers would load it, {type(written.nets[0]).__name__} computes something else; use "
            "result.export(folder)"
        )
