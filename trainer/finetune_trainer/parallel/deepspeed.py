"""ZeRO by DeepSpeed's engine, for those who choose it: stage 1 shards moments, 2 gradients too, 3 weights as well.
Moments, or in stage 3 weights too, may wait in host memory (offload).

The mathematics stay the same: torch's AdamW, gradients of sums of nats, one division by the trained tokens of the whole
step. DeepSpeed averages over ranks, so losses go in times the number of ranks; and it divides by a loss scale before it
clips, so the tokens of a step are handed over as that.

Checkpoints hold whole tensors by name, like those of every other strategy, so a run resumes on any number of ranks and
under any strategy. Under stage 3 the files are read a tensor at a time by every rank, which keeps its part.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_api.spec import Optimizer
from finetune_trainer.decoder_blocks import decoder_layers

from .base import Gang, Packed, Place, Saved, Weights
from .lazy_weights import Files, empty_network, names_by_parameter
from .lockstep import Lockstep

T = TypeVar("T")

_BUCKET = 50_000_000
"""Gradients that are reduced at once, in elements: DeepSpeed allocates so many."""


@dataclass(frozen=True)
class DeepSpeed(Lockstep):
    name: str = "deepspeed"
    stage: int = 2
    offload: Literal["none", "optimizer", "all"] = "none"
    _engine: list[Any] = field(default_factory=list, repr=False)

    def build(
        self,
        kind: Any,
        path: Path,
        *,
        device: torch.device,
        frozen: bool,
        packed: Packed | None = None,  # noqa: ARG002  refused beside it
        products: torch.dtype | None = None,  # noqa: ARG002
        **options: Any,
    ) -> nn.Module:
        if self.stage < 3:
            return super().build(kind, path, device=device, frozen=frozen, **options)
        network = empty_network(kind, **options)
        files = Files.of(path, network)
        zero = _library(self.place, self.device).zero
        for names in list(names_by_parameter(network).values()):
            holder = nn.Module()
            whole = files.read(names).to(device, network.get_parameter(names[0]).dtype)
            holder.weight = nn.Parameter(whole)
            for name in names:
                owner, _, own = name.rpartition(".")
                setattr(network.get_submodule(owner), own, holder.weight)
            zero.Init(module=holder, config_dict_or_path=self._config(width=1))
        files.fill_buffers(network)
        for module in network.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        return network.eval()

    def weights(
        self,
        network: nn.Module,
        trainable: Mapping[str, nn.Parameter],
        *,
        weight_decay: float,
        optimizer: Optimizer = "adamw",  # noqa: ARG002  the manifest has no other here
    ) -> Weights:
        library = _library(self.place, self.device)
        root = _Root(network)
        layers = list(cast(nn.ModuleList, network.get_submodule(decoder_layers(network).prefix)))
        if self.stage == 3:
            # A layer's weights come and go together: methods use them outside of the modules that own them.
            library.utils.set_z3_leaf_modules(root, list({type(layer) for layer in layers}))
            for layer in layers:
                if any(parameter.requires_grad for parameter in layer.parameters()):
                    layer.register_forward_pre_hook(_ask_for_gradients)
            hugging = cast(Any, network)
            for module in (hugging.get_input_embeddings(), hugging.get_output_embeddings()):
                library.zero.register_external_parameter(root, module.weight)
        decayed = [p for p in trainable.values() if len(_shape(p)) > 1]
        others = [p for p in trainable.values() if len(_shape(p)) <= 1]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0)
        engine, *_ = library.initialize(
            model=root,
            model_parameters=list(trainable.values()),
            optimizer=adamw,
            config=self._config(width=cast(Any, network).config.get_text_config().hidden_size),
            dist_init_required=False,
        )
        self._engine[:] = [engine]
        return ZeroAdamW(engine, trainable, gang=self, stage=self.stage)

    def inside(self, network: nn.Module, work: Callable[[], T]) -> T:  # noqa: ARG002
        return cast(T, self._engine[0](work))

    @torch.no_grad()
    def collect(self, network: nn.Module, *, everything: bool) -> None:
        if self.stage < 3:
            return
        zero = _library(self.place, self.device).zero
        for parameter in network.parameters():
            if everything or parameter.requires_grad:
                with zero.GatheredParameters([parameter]):
                    whole = parameter.detach().cpu().clone() if self.place.first else torch.empty(0)
                parameter.data = whole

    def _config(self, *, width: int) -> dict[str, Any]:
        zero: dict[str, Any] = {
            "stage": self.stage,
            "reduce_bucket_size": _BUCKET if self.device.type == "cuda" else 1_000_000,
            "overlap_comm": self.device.type == "cuda",
            "stage3_param_persistence_threshold": 10 * width,
        }
        if self.offload != "none":
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.device.type == "cuda"}
        if self.offload == "all":
            zero["offload_param"] = {"device": "cpu", "pin_memory": self.device.type == "cuda"}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "steps_per_print": 1_000_000_000,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
        }


class _Root(nn.Module):
    """What the engine runs: any work on the network, with what the network keeps outside of its layers at hand."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, work: Callable[[], T]) -> T:
        return work()


def _ask_for_gradients(_: nn.Module, inputs: tuple[Any, ...]) -> None:
    """DeepSpeed takes a layer for done when the gradient of its input is: the lowest layer that trains needs one."""
    if torch.is_grad_enabled() and inputs and not inputs[0].requires_grad:
        inputs[0].requires_grad_()


def _library(place: Place, device: torch.device) -> Any:
    """DeepSpeed, configured for where it runs. On CPUs it would compile a faster all-reduce first, for minutes."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(place.local_rank))
    library = importlib.import_module("deepspeed")
    library.utils.logger.setLevel("WARNING")
    library.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    library.init_distributed(dist_backend="gloo" if device.type == "cpu" else "nccl", verbose=False)
    return library


def _shape(parameter: nn.Parameter) -> torch.Size:
    return cast(torch.Size, getattr(parameter, "ds_shape", parameter.shape))


class ZeroAdamW:
    """AdamW inside of DeepSpeed's engine. A step whose norm is not finite spoils the weights: a checkpoint has them."""

    parts = 1

    def __init__(self, engine: Any, trainable: Mapping[str, nn.Parameter], *, gang: Gang, stage: int) -> None:
        self.steps = 0
        self._going = False
        self._engine = engine
        self._trainable = dict(trainable)
        self._gang = gang
        self._stage = stage
        self._tools = importlib.import_module("deepspeed.utils")
        self._states = self._prepared()

    def backward(self, nats: Tensor, *, last: bool) -> None:
        self._going = True
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(nats * self._gang.place.world_size)

    def step(self, rate: float, *, divisor: float, max_norm: float) -> float:
        if not self._going:  # the step's batch is left out: there is nothing to sum
            self.steps += 1
            return 0.0
        self._going = False
        optimizer = self._engine.optimizer
        for settings in optimizer.param_groups:
            settings["lr"] = rate
        optimizer.clip_grad = max_norm
        optimizer.override_loss_scale(divisor)
        self._engine.step()
        optimizer.override_loss_scale(1.0)
        self.steps += 1
        return float(optimizer._global_grad_norm)

    def tensors(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for name, parameter in self._trainable.items():
            self._keep(f"weights/{name}", self._tools.safe_get_full_fp32_param(parameter), named)
            for kind, key in _MOMENTS.items() if self.steps else ():
                moment = self._tools.safe_get_full_optimizer_state(parameter, key)
                self._keep(f"moments/{name}.{kind}", moment, named)
        return named

    def restore(self, saved: Saved | None, *, steps: int) -> None:
        self.steps = steps
        if steps == 0:
            return
        self.restore_weights(saved)
        for name, parameter in self._trainable.items():
            for kind, key in _MOMENTS.items():
                moment = self._shared(saved, f"moments/{name}.{kind}", parameter)
                self._put(parameter, moment, key)
        for state in self._states:
            state["step"].fill_(float(steps))

    @torch.no_grad()
    def restore_weights(self, saved: Saved | None) -> None:
        for name, parameter in self._trainable.items():
            whole = self._shared(saved, f"weights/{name}", parameter)
            self._put(parameter, whole, None)
            with self._whole(parameter):
                parameter.copy_(whole)

    @contextlib.contextmanager
    def editable(self) -> Iterator[None]:
        sharded = [p for p in self._trainable.values() if self._stage == 3]
        away = [parameter.data for parameter in sharded]
        for parameter in sharded:
            parameter.data = cast(Any, parameter).ds_tensor.data
        yield
        for parameter, data in zip(sharded, away, strict=True):
            parameter.data = data

    def _whole(self, parameter: nn.Parameter) -> contextlib.AbstractContextManager[Any]:
        if self._stage < 3:
            return contextlib.nullcontext()
        zero = importlib.import_module("deepspeed").zero
        gathered: contextlib.AbstractContextManager[Any] = zero.GatheredParameters([parameter], modifier_rank=0)
        return gathered

    def _put(self, parameter: nn.Parameter, whole: Tensor, key: str | None) -> None:
        """This rank's part of a weight that is optimized, or of a moment."""
        if self._stage < 3:
            if key is None:
                self._tools.safe_set_full_fp32_param(parameter, whole)
            else:
                self._tools.safe_set_full_optimizer_state(parameter, whole, key)
            return
        # Its public counterpart is wrong where a weight does not divide by the number of ranks.
        optimizer = self._engine.optimizer
        part, _ = optimizer._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=key)
        start = part.numel() * optimizer._get_param_partition_rank(parameter)
        padded = F.pad(whole.flatten(), (0, part.numel() * self._gang.place.world_size - whole.numel()))
        part.data.copy_(padded[start : start + part.numel()])

    def _keep(self, name: str, whole: Tensor, into: dict[str, Tensor]) -> None:
        if self._gang.place.first:
            into[name] = whole.detach().cpu().clone()

    def _shared(self, saved: Saved | None, name: str, like: nn.Parameter) -> Tensor:
        """Rank 0's tensor for all ranks."""
        whole = torch.empty(_shape(like)) if saved is None else saved.read(name, slice(None)).float()
        whole = whole.to(self._engine.device).contiguous()
        self._gang.broadcast([whole])
        return whole

    def _prepared(self) -> list[dict[str, Tensor]]:
        """AdamW's state of each flat part. torch makes it at the first step, where DeepSpeed looks too early for it."""
        optimizer = self._engine.optimizer
        flat = optimizer.fp32_partitioned_groups_flat if self._stage == 3 else optimizer.single_partition_of_fp32_groups
        states = [optimizer.optimizer.state[part] for part in flat]
        for part, state in zip(flat, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state |= {key: torch.zeros_like(part) for key in _MOMENTS.values()}
        if self._stage < 3:
            optimizer._lazy_init_hp_params_optimizer_state()
        return states


_MOMENTS = {"first": "exp_avg", "second": "exp_avg_sq"}
