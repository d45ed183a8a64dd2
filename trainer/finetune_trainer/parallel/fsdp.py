"""Fully sharded: each rank holds a part of every weight, and a layer is whole only while it is computed (FSDP2).

One unit for each decoder layer, and one for what is outside of them. Two cases:

    a frozen base     is sharded and never reduced; what a method attaches to it afterwards is complete on every rank,
                      and its gradients are summed once a step like those of data parallel training; in 4 bits its
                      bytes are what is sharded (`sharded_4bit`)
    trained weights   are sharded with their gradients and moments; gradients are summed into the shards after each
                      micro-batch, so no rank keeps whole ones

Passes are collective: a rank with fewer micro-batches than another does passes over nothing. On several nodes with
several processes each, a node holds the whole model between its processes and nodes are replicas of each other (HSDP):
what crosses between nodes is a shard's gradient, not every layer. Where a node cannot hold it, two or more nodes do.

Of trained weights each rank saves its own rows, and reads them back: 12 bytes of host memory for each parameter of its
share (6 with 8-bit AdamW), and nothing passes between ranks. Of replicas the first one saves.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from finetune_api.spec import Optimizer
from finetune_trainer.decoder_blocks import body_of, decoder_layers, has_towers
from finetune_trainer.store.fetch import at_once
from finetune_trainer.torch_api import need

from .adamw_8bit import Codecs, Moments, block_of
from .base import Gang, Packed, Saved, Weights, rows_of
from .flat_adamw import FlatAdamW
from .lazy_weights import Files, empty_network, names_by_parameter
from .lockstep import Lockstep

if TYPE_CHECKING:
    from .sharded_4bit import SharedLinear4bit

T = TypeVar("T")

need(
    "torch.distributed.fsdp:FSDPModule.set_gradient_divide_factor",
    "torch.distributed.fsdp:FSDPModule.set_force_sum_reduction_for_comms",
    what_for="strategy fsdp",
)


@dataclass(frozen=True)
class Fsdp(Lockstep):
    name: str = "fsdp"
    shards: int | None = None
    """How many processes share a weight, whole nodes of them; None: those of a node."""

    def mesh(self, *, frozen: bool) -> DeviceMesh:
        """(shards,), or (replicas, shards). What is frozen has nothing to exchange between replicas.

        PEFT takes sharded layers for parts of tensor parallel ones unless all of their mesh is called fsdp."""
        world = self.place.world_size
        sharing = self.shards or self.place.local_world_size
        if not 1 < sharing < world or world % sharing:
            return init_device_mesh(self.device.type, (world,), mesh_dim_names=("fsdp",))
        mesh = init_device_mesh(self.device.type, (world // sharing, sharing), mesh_dim_names=("replicas", "fsdp"))
        return mesh["fsdp"] if frozen else mesh

    def build(
        self,
        kind: Any,
        path: Path,
        *,
        device: torch.device,
        frozen: bool,
        packed: Packed | None = None,
        products: torch.dtype | None = None,
        **options: Any,
    ) -> nn.Module:
        network = empty_network(kind, **options)
        files = Files.of(path, network)  # before it has another class, of which transformers knows no names
        in_four_bits = _share(network, packed(network)) if packed else {}
        gathered = gathered_dtype(options["dtype"], products, device=self.device.type)
        policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32)
        mesh = self.mesh(frozen=frozen)
        for layer in _units(network):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(network, mesh=mesh, mp_policy=policy)
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        _fill(network, files, device, in_four_bits)
        network.inside = _run  # type: ignore[assignment]
        register_fsdp_forward_method(network, "inside")
        return network.eval()

    def weights(
        self,
        network: nn.Module,  # noqa: ARG002
        trainable: Mapping[str, nn.Parameter],
        *,
        weight_decay: float,
        optimizer: Optimizer = "adamw",
    ) -> Weights:
        kind = ShardedAdamW if any(isinstance(p, DTensor) for p in trainable.values()) else FlatAdamW
        return kind(trainable, weight_decay=weight_decay, gang=self, optimizer=optimizer)

    def inside(self, network: nn.Module, work: Callable[[], T]) -> T:
        try:
            return cast(T, cast(Any, network).inside(work))
        finally:
            if not torch.is_grad_enabled():  # with gradients the backward still needs what is outside the layers
                cast(FSDPModule, network).reshard()

    def collect(self, network: nn.Module, *, everything: bool) -> None:
        if not everything:
            return
        whole: dict[int, nn.Parameter] = {}
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                if not isinstance(parameter, DTensor):
                    continue
                if id(parameter) not in whole:
                    tensor = parameter.full_tensor().detach().cpu()
                    kept = tensor if self.place.first else torch.empty(0)
                    whole[id(parameter)] = nn.Parameter(kept, requires_grad=False)
                module._parameters[name] = whole[id(parameter)]
        for module in network.modules():
            if isinstance(module, FSDPModule):  # its own class again, by which transformers names what it writes
                module.__class__ = type(module).__bases__[1]


def gathered_dtype(kept: torch.dtype, products: torch.dtype | None, *, device: str) -> torch.dtype | None:
    """Of weights while they are whole; None: as they are kept. Weights in 32 bits travel between GPUs in the 16 that
    their products are computed in, and in 32 where the manifest asks for training.precision: float32. Gradients are
    summed in 32 bits."""
    return products if device == "cuda" and kept == torch.float32 else None


def _units(network: nn.Module) -> list[nn.Module]:
    """The decoder layers, and whatever is next to the language model: that never runs, and is never gathered."""
    layers = list(cast(nn.ModuleList, network.get_submodule(decoder_layers(network).prefix)))
    if not has_towers(network):
        return layers
    inner = set(body_of(network).modules())
    parts = cast(nn.Module, cast(Any, network).base_model).children()
    heads = {cast(Any, network).get_output_embeddings()}
    return [
        *layers,
        *(m for m in parts if next(m.parameters(), None) is not None and not (inner | heads) & {*m.modules()}),
    ]


def _run(work: Callable[[], T]) -> T:
    return work()


def _share(network: nn.Module, packed: Sequence[str]) -> dict[str, SharedLinear4bit]:
    """The layers of these names in their new form, by the names of their weights."""
    from .sharded_4bit import SharedLinear4bit

    made = {}
    for name in packed:
        layer = made[f"{name}.weight"] = SharedLinear4bit(cast(nn.Linear, network.get_submodule(name)))
        network.set_submodule(name, layer)
    cast(Any, network).is_loaded_in_4bit = True  # by which PEFT chooses its layers
    return made


@torch.no_grad()
def _fill(network: nn.Module, files: Files, device: torch.device, in_four_bits: Mapping[str, SharedLinear4bit]) -> None:
    """Memory for this rank's shards, and their rows from the files."""
    packed = {id(parameter) for layer in in_four_bits.values() for parameter in (layer.weight, layer.scales)}
    names = [names for parameter, names in names_by_parameter(network).items() if id(parameter) not in packed]
    cast(Any, network)._apply(
        lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)
    )
    for first, *others in names:
        for other in others:  # tied weights are one parameter again
            owner, _, name = other.rpartition(".")
            setattr(network.get_submodule(owner), name, network.get_parameter(first))
        parameter = network.get_parameter(first)
        local, start = _shard(parameter)
        if len(local):
            local.copy_(files.read([first, *others], slice(start, start + len(local))))
    files.fill_buffers(network)
    for name, layer in in_four_bits.items():
        local, start = _shard(layer.weight)
        layer.fill(files.read([name], slice(start, start + len(local))), start=start)


def _shard(parameter: Tensor) -> tuple[Tensor, int]:
    """(this rank's rows, the number of the first one)."""
    assert isinstance(parameter, DTensor)
    mesh, shards = parameter.device_mesh, parameter.device_mesh.ndim - 1
    assert parameter.placements[shards] == Shard(0)
    rows = rows_of(mesh.get_local_rank(shards), mesh.size(shards), len(parameter))
    return parameter.to_local(), rows.start


class ShardedAdamW:
    """AdamW over the shards. A parameter's shard, its gradient and its moments are on the same rank."""

    def __init__(
        self,
        trainable: Mapping[str, nn.Parameter],
        *,
        weight_decay: float,
        gang: Gang,
        optimizer: Optimizer = "adamw",
    ) -> None:
        self.steps = 0
        self._trainable = dict(trainable)
        self._gang = gang
        mesh = cast(DTensor, next(iter(trainable.values()))).device_mesh
        self.parts = mesh.size(mesh.ndim - 1)
        self._replicas = mesh.size() // self.parts
        self._local = {name: nn.Parameter(_shard(p)[0].detach()) for name, p in trainable.items()}
        self._decay = {name: weight_decay if p.ndim > 1 else 0.0 for name, p in trainable.items()}
        self._packed = _packed(trainable, self._local) if optimizer == "adamw8bit" else {}
        whole = {name: shard for name, shard in self._local.items() if name not in self._packed}
        decayed = [shard for name, shard in whole.items() if trainable[name].ndim > 1]
        others = [shard for name, shard in whole.items() if trainable[name].ndim <= 1]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        filled = [group for group in groups if group["params"]]
        self._adamw = torch.optim.AdamW(filled or [{"params": []}], lr=0.0, fused=True)
        for shard in whole.values():
            self._adamw.state[shard] = {
                "step": torch.zeros((), dtype=torch.float32, device=shard.device),
                "exp_avg": torch.zeros_like(shard),
                "exp_avg_sq": torch.zeros_like(shard),
            }

    def backward(self, nats: Tensor, *, last: bool) -> None:  # noqa: ARG002
        nats.backward()  # type: ignore[no-untyped-call]

    def step(self, rate: float, *, divisor: float, max_norm: float) -> float:
        for name, parameter in self._trainable.items():
            gradient = parameter.grad
            shard = self._local[name]
            # None where the step's batch is left out.
            shard.grad = torch.zeros_like(shard) if gradient is None else cast(DTensor, gradient).to_local()
        gradients = [cast(Tensor, shard.grad) for shard in self._local.values()]
        squares = float(sum(gradient.double().square().sum() for gradient in gradients))
        norm = math.sqrt(self._gang.sum_counters([squares])[0] / self._replicas) / divisor
        if not math.isfinite(norm):
            return norm
        clipped = min(1.0, max_norm / (norm + 1e-6)) if max_norm > 0 else 1.0
        for gradient in gradients:
            gradient.mul_(clipped / divisor)
        for settings in self._adamw.param_groups:
            settings["lr"] = rate
        self._adamw.step()
        self.steps += 1
        for name, packed in self._packed.items():
            shard = self._local[name]
            gradient = cast(Tensor, shard.grad).contiguous().view(-1)
            packed.update(shard.data.view(-1), gradient, rate=rate, decay=self._decay[name], step=self.steps)
        for name, parameter in self._trainable.items():
            self._local[name].grad = parameter.grad = None
        return norm

    def tensors(self) -> dict[str, Tensor]:
        return {name: rows for name, rows, _ in self._rows(moments=self.steps > 0)}

    def restore(self, saved: Saved | None, *, steps: int) -> None:
        self.steps = steps
        if steps == 0:  # read from the same files by every rank
            return
        self._read(saved, moments=True)
        for state in self._adamw.state.values():
            state["step"].fill_(float(steps))

    def restore_weights(self, saved: Saved | None) -> None:
        self._read(saved, moments=False)

    def editable(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def _read(self, saved: Saved | None, *, moments: bool) -> None:
        assert saved is not None

        def fill(wanted: tuple[str, Tensor, int]) -> None:
            name, rows, start = wanted
            if len(rows):
                rows.copy_(saved.read(name, slice(start, start + len(rows))))

        at_once(fill, self._rows(moments=moments))

    def _rows(self, *, moments: bool) -> Iterator[tuple[str, Tensor, int]]:
        """(name, this rank's rows, the number of the first one) of each tensor."""
        for name, parameter in self._trainable.items():
            start = _shard(parameter)[1]
            yield f"weights/{name}", self._local[name].detach(), start
            for kind, rows in self._moments(name).items() if moments else ():
                yield f"moments/{name}.{kind}", rows, start

    def _moments(self, name: str) -> dict[str, Tensor]:
        """This rank's rows of each, as they are laid out in a checkpoint."""
        shard = self._local[name]
        if name not in self._packed:
            state = self._adamw.state[shard]
            return {"first": state["exp_avg"], "second": state["exp_avg_sq"]}
        packed = self._packed[name]
        by_row = (len(shard), math.prod(shard.shape[1:]) // packed.block)
        return {
            kind: part.view(by_row if kind.endswith("scales") else shard.shape) for kind, part in packed.tensors.items()
        }


def _packed(trainable: Mapping[str, nn.Parameter], local: Mapping[str, nn.Parameter]) -> dict[str, Moments]:
    """8-bit moments, by the shape of the whole: so every rank has the same ones, if only of no rows."""
    codecs = Codecs()
    return {
        name: Moments(codecs.on(local[name].device), size=local[name].numel(), block=block)
        for name, parameter in trainable.items()
        if (block := block_of(parameter))
    }
