"""A model without weights, and weights put into it.

Owns: choosing the transformers class, building it on the meta device, matching checkpoint names to its
parameters, assigning tensors without copying. Knows nothing of batches or of where memory comes from.
Invariant: after ``assign`` no tensor of the model is on the meta device. Start at ``build_skeleton``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import structlog
import torch
import transformers
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.initialization import no_init_weights

from sllmd.core.errors import MalformedCheckpoint, UnsupportedCheckpoint
from sllmd.engine.cache import EAGER_ATTENTION, SDPA_ATTENTION
from sllmd.engine.weights import Weights
from sllmd.store.manifest import Manifest

_log = structlog.get_logger(__name__)

_ATTENTION_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}


def build_skeleton(manifest: Manifest, dtype: torch.dtype) -> Any:
    """The model's modules on the meta device, its computed buffers real.

    Raises UnsupportedCheckpoint for what is not a decoder with a key-value cache.
    """
    model_class = _model_class(manifest.architecture)
    try:
        config = model_class.config_class.from_dict(dict(manifest.config))
    except (TypeError, ValueError, KeyError) as error:
        raise MalformedCheckpoint(
            f"config.json does not describe {manifest.architecture}: {error}"
        ) from error
    _refuse_unsupported(manifest, model_class, config)
    soft_capped = bool(_text(config, "attn_logit_softcapping"))
    eager = soft_capped or not model_class._supports_sdpa or not attends_through_interface(model_class)
    with torch.device("meta"), no_init_weights():
        model = model_class._from_config(
            config, dtype=dtype, attn_implementation="eager" if eager else "sdpa"
        )
    model.eval()
    for part in _configs(model):
        part._attn_implementation = EAGER_ATTENTION if eager else SDPA_ATTENTION
    _compute_buffers(model)
    return model


def attends_through_interface(model_class: type) -> bool:
    """Whether attention goes where transformers lets it be exchanged, and so takes any mask.

    A few old families (Falcon, Bloom, MPT, GPT-J, ...) have only code of their own, some of which builds its
    masks itself and takes all rows to be equally long.
    """
    return hasattr(sys.modules[model_class.__module__], "ALL_ATTENTION_FUNCTIONS")


def assign(model: Any, weights: Weights) -> None:
    """Make ``weights`` the parameters of ``model``, converting only where type or layout differ.

    Raises MalformedCheckpoint naming the first tensor that is missing, of the wrong shape or type; tensors
    that the model has no use for are logged.
    """
    wanted: dict[str, torch.Tensor] = model.state_dict()
    set_tensor = _setter(model)
    found: set[str] = set()
    for name, tensor in _renamed(model, weights.tensors, wanted):
        expected = wanted[name]
        if tensor.shape != expected.shape:
            raise MalformedCheckpoint(
                f"tensor {name} has shape {list(tensor.shape)}, the model wants {list(expected.shape)}"
            )
        if not _rounds(tensor.dtype, expected.dtype):
            raise MalformedCheckpoint(
                f"tensor {name} holds {tensor.dtype}, the model wants {expected.dtype}",
                hint="quantised weights are not served: import the bf16 or fp16 version of the model",
            )
        set_tensor(name, tensor if tensor.dtype == expected.dtype else tensor.to(expected.dtype))
        found.add(name)
    _tie(model, found)
    parameters = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    if parameters:
        raise MalformedCheckpoint(f"tensor {min(parameters)} is missing from the checkpoint")
    _place_on_devices(model)


def _rounds(stored: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether ``stored`` becomes ``wanted`` by rounding: the codes of a quantisation (int, fp8) do not."""
    both_float = stored.is_floating_point and wanted.is_floating_point and stored.itemsize > 1
    return stored == wanted or both_float or not (stored.is_floating_point or wanted.is_floating_point)


def _model_class(architecture: str) -> Any:
    model_class = getattr(transformers, architecture, None)
    if model_class is None or not hasattr(model_class, "config_class"):
        raise UnsupportedCheckpoint(
            f"transformers {transformers.__version__} has no architecture {architecture}",
            hint="sllmd serves decoders that transformers knows without remote code",
        )
    return model_class


def _refuse_unsupported(manifest: Manifest, model_class: Any, config: Any) -> None:
    reason = None
    if getattr(config, "is_encoder_decoder", False):
        reason = "is an encoder-decoder"
    elif not model_class.can_generate():
        reason = "does not generate text"
    elif model_class._is_stateful or not set(_text(config, "layer_types") or ()) <= _ATTENTION_LAYER_TYPES:
        reason = "keeps a recurrent state, which the cache cannot hold"
    elif manifest.config.get("quantization_config"):
        reason = "is quantised"
    if reason:
        raise UnsupportedCheckpoint(
            f"{manifest.architecture} {reason}", hint="import a decoder-only model in F32, F16 or BF16"
        )


def _text(config: Any, field: str) -> Any:
    return getattr(config.get_text_config(), field, None)


def _configs(model: nn.Module) -> Iterator[Any]:
    """Every configuration object that modules look at."""
    seen: set[int] = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and id(config) not in seen and hasattr(config, "_attn_implementation"):
            seen.add(id(config))
            yield config


def _compute_buffers(model: Any) -> None:
    """Buffers that no checkpoint holds (rotary frequencies, scales), by the model's own rules.

    Done while the parameters are still on the meta device, so that the rules cannot touch a weight.
    """
    for module in model.modules():
        if any(buffer is not None and buffer.is_meta for buffer in module._buffers.values()):
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_meta:
                    module._buffers[name] = torch.zeros_like(buffer, device="cpu")
            model._init_weights(module)


def _renamed(
    model: Any, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Checkpoint tensors under the model's names; fused ones (experts) are put together."""
    others = {}
    for name, tensor in tensors.items():
        if name in wanted:
            yield name, tensor
        else:
            others[name] = tensor
    if not others:
        return
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    gathered: dict[str, Any] = {}
    unused = []
    for name in sorted(others, key=_natural):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
        if target not in wanted:
            unused.append(name)
        elif pattern is None:
            yield target, others[name]
        else:
            converter = gathered.setdefault(target, deepcopy(by_pattern[pattern]))
            converter.add_tensor(target, name, pattern, others[name])
    if unused:
        _log.warning("unexpected tensors", count=len(unused), first=unused[0])
    for target, converter in gathered.items():
        converted = converter.convert(target, model=model, config=model.config)
        for name, tensor in converted.items():
            yield name, tensor[0] if isinstance(tensor, list) else tensor


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts expert 10 behind expert 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _setter(model: nn.Module) -> Callable[[str, torch.Tensor], None]:
    modules = dict(model.named_modules())

    def set_tensor(name: str, tensor: torch.Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        module = modules[owner]
        if leaf in module._buffers:
            module._buffers[leaf] = tensor
        else:
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)

    return set_tensor


def _tie(model: Any, found: set[str]) -> None:
    """Give tensors the checkpoint leaves out, by the model's own ties, the one they equal."""
    for target, source in model.all_tied_weights_keys.items():
        for missing, stored in ((target, source), (source, target)):
            if missing not in found and stored in found:
                owner, _, leaf = missing.rpartition(".")
                model.get_submodule(owner)._parameters[leaf] = model.get_parameter(stored)


def _place_on_devices(model: nn.Module) -> None:
    """Where weights lie on several devices, have each layer fetch its input to its own.

    Layers carry their weights' device; everything else follows its own parameters.
    """
    devices = {parameter.device for parameter in model.parameters()}
    first = next(model.parameters()).device
    for module in model.modules():
        own = next(module.parameters(recurse=False), None)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(own.device if own is not None else first)
    if len(devices) == 1:
        return
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            continue
        home = {parameter.device for parameter in module.parameters()}
        if len(home) == 1:
            module.register_forward_pre_hook(_fetch_to(home.pop()), with_kwargs=True)


def _fetch_to(device: torch.device) -> Callable[..., tuple[Any, Any]]:
    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device)
        if isinstance(value, tuple):
            return tuple(move(item) for item in value)
        return value

    def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return tuple(move(item) for item in args), {key: move(item) for key, item in kwargs.items()}

    return hook
