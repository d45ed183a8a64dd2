"""Which linear layers of a network are called, and which have their weight read by their parent's code.

An adapter is attached to a call: where a state-space block multiplies with `self.dt_proj.weight` itself, or hands
`self.out_proj.weight` to a fused kernel, an adapter of that layer is never asked, on some devices or on all, and a
weight in 4 bits is not a matrix. PEFT refuses some of these by the names of families; here the code of
the class decides.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any, cast

from torch import nn

_FACTS = frozenset({"device", "dtype", "shape", "ndim", "size", "dim", "requires_grad"})
"""Attributes of a weight that do not use its values."""


def is_called(network: nn.Module, name: str) -> bool:
    """Whether the linear layer of this name is only ever called by the module that it belongs to."""
    parent, _, child = name.rpartition(".")
    return child not in _read(cast(Any, type(network.get_submodule(parent))))


@cache
def _read(kind: Any) -> frozenset[str]:
    """Children of a class whose weights its code, or that of a class it comes from, uses as matrices."""
    ours = (one for one in kind.__mro__ if issubclass(one, nn.Module) and not one.__module__.startswith("torch."))
    return frozenset(name for one in ours for name in _read_in(one))


def _read_in(kind: type) -> Iterator[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # made at run time: it has no source
        return
    (found,) = tree.body
    for function in ast.walk(found):
        # What sets weights at the beginning reads them too, and computes nothing.
        if isinstance(function, ast.FunctionDef) and not any(word in function.name for word in ("init", "reset")):
            yield from _weights(function)


def _weights(function: ast.FunctionDef) -> Iterator[str]:
    """x of each `self.x.weight` but those that only a fact is asked of, or a slice: code that imitates tensor
    parallelism takes slices (BLOOM's `slow_but_exact`), and no model runs it unless its config says so."""
    asked = {id(node.value) for node in ast.walk(function) if isinstance(node, ast.Attribute) and node.attr in _FACTS}
    asked |= {id(node.value) for node in ast.walk(function) if isinstance(node, ast.Subscript)}
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and node.attr == "weight" and id(node) not in asked:
            owner = node.value
            if isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "self":
                yield owner.attr
