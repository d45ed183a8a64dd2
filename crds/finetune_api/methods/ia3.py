"""IA3: learned factors of keys, values and inner features of the feed-forward networks."""

from __future__ import annotations

from .traits import Rate, Traits

IA3 = Traits(
    name="ia3",
    summary="learned factors that scale keys, values and inner feed-forward features of a frozen model",
    settings=None,
    trains="added",
    rate=Rate(fixed=1e-3),  # the better of two runs in PEFT's published comparison; with 1e-4 it was a fifth worse
    library="peft",
    switches_off=True,
    shards=("fsdp",),
    new_rows=True,
    mergeable=True,
    not_compiled="no test proves its layers compiled",
    thrift=1,
)
