"""Narrow nets, and nets with grouped norms, as a model of transformers.

``checkpoint/pretrained.py`` writes this file and ``grouped_norm.py`` beside the weights, so that transformers can load
the folder where Skerry is not installed. Nothing else imports it: it needs transformers.
"""

import copy
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from .grouped_norm import GroupedNorm


class NetsConfig(transformers.PretrainedConfig):  # type: ignore[misc]
    """What each of the nets is.

    Args:
        nets: for each net ``config``, that of the model it was cut from, with its class in ``architectures``;
            ``shapes``, of the tensors that are narrow; ``numbers``, by module and path, that its modules keep;
            ``norms``, those over groups: group_width, eps, centred, offset.
    """

    model_type = "skerry_nets"

    def __init__(self, nets: Any = (), **given: Any) -> None:
        self.nets = list(nets)
        super().__init__(**given)


class Nets(transformers.PreTrainedModel, transformers.GenerationMixin):  # type: ignore[misc]
    """The mean of the logits of the nets."""

    config_class = NetsConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.nets = nn.ModuleList(made(net) for net in config.nets)
        self.main_input_name = self.nets[0].main_input_name
        self.post_init()  # which looks for tied weights in children only, and the nets are in a list
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    def forward(self, *args: Any, labels: Tensor | None = None, **given: Any) -> Any:
        """Return the mean of the nets' logits, and for language models the loss if there are labels.

        Raises:
            ValueError: there are labels, and the model is no language model.
        """
        for name in ("past_key_values", "cache_position", "return_dict"):  # each net would need its own
            given.pop(name, None)
        if "use_cache" in given:
            given["use_cache"] = False
        logits = torch.stack([net(*args, **given).logits for net in self.nets]).mean(0)
        loss = None
        if labels is not None:
            first: Any = self.nets[0]
            if logits.shape[-1] != getattr(self.config, "vocab_size", None):
                raise ValueError("labels: only language models compute their loss here; compute it from the logits")
            loss = first.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        return CausalLMOutput(loss=loss, logits=logits)

    def generate(self, *args: Any, **given: Any) -> Any:
        """As in transformers, without a cache."""
        return super().generate(*args, **{**given, "use_cache": False})


def made(net: dict[str, Any]) -> Any:
    """Return a net: the model that it was cut from, with smaller tensors, smaller numbers and grouped norms."""
    kind = getattr(transformers, net["config"]["architectures"][0])
    model: Any = kind(kind.config_class.from_dict(net["config"]))
    full = dict(model.named_parameters(remove_duplicate=False))
    new = {id(full[name]): nn.Parameter(full[name].new_empty(shape)) for name, shape in net["shapes"].items()}
    for module in model.modules():
        for own, parameter in list(module._parameters.items()):
            if id(parameter) in new:
                module._parameters[own] = new[id(parameter)]  # a tied one stays tied
    for name, numbers in net["numbers"].items():
        for path, number in numbers.items():
            put(model.get_submodule(name), path.split("."), number)
    for name, (group_width, eps, centred, offset) in net["norms"].items():
        norm = model.get_submodule(name)
        bias = getattr(norm, "bias", None)
        model.set_submodule(name, GroupedNorm(norm.weight, bias, group_width, eps, centred, offset))
    return model


def put(holder: Any, path: list[str], number: int) -> Any:
    """Set the number at ``path`` in a module's attributes, tuples, dicts and objects; what is in them is copied."""
    if not path:
        return number
    first, *rest = path
    if isinstance(holder, tuple | list):
        return type(holder)(put(item, rest, number) if f"{k}" == first else item for k, item in enumerate(holder))
    changed: Any = holder if isinstance(holder, nn.Module) else copy.copy(holder)
    if isinstance(holder, dict):
        changed.update({key: put(item, rest, number) for key, item in holder.items() if f"{key}" == first})
    else:
        setattr(changed, first, put(getattr(holder, first), rest, number))
    return changed
