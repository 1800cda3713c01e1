"""Low-rank adapters (LoRA, arXiv:2106.09685) on the blocks of a pretrained video transformer, through `peft`."""

from __future__ import annotations

import torch
from torch import nn

from wamkit.nn.options import LoraConfig
from wamkit.nn.parameters import set_parameter
from wamkit.types import WamkitError

TARGETS = r".*blocks\.\d+\.(attn[12]\.to_(q|k|v|out\.0)|ffn?\.net\.(0\.proj|2))"
"""Matrices with adapters: those of attention and of the MLP, by their names in `diffusers`."""
ADAPTER = ".lora_"
"""Part of the names of adapters' weights."""


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Adds adapters to `model`, in place. Its outputs are unchanged until they learn; all other weights are frozen."""
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise WamkitError("backbone.lora needs peft: pip install 'wamkit[pretrained]'") from error
    options = PeftConfig(r=config.rank, lora_alpha=config.alpha or config.rank, target_modules=TARGETS)
    # Adapters are made where the weights beside them are. Those without memory are stood in for by one number.
    empty = {name: p for name, p in model.named_parameters() if p.is_meta}
    for name, p in empty.items():
        set_parameter(model, name, torch.empty(()).expand(p.shape))
    inject_adapter_in_model(options, model)
    for name in [name for name, _ in model.named_parameters()]:
        if (before := name.replace(".base_layer.", ".")) in empty and ADAPTER not in name:
            set_parameter(model, name, empty[before])


def merge_adapters(model: nn.Module) -> None:
    """Adds adapters to the weights that they stand beside, in place, and removes them."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
