"""Every method by its name in the manifest. To add one, write a file next to this one and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune_api.methods import Method as Settings

from .adapter import Adapter
from .base import Method
from .dora import Dora
from .full import Full
from .ia3 import IA3
from .lora import Lora
from .partial import partial
from .prefix import Prefix
from .probe import Probe
from .prompt import Prompt
from .ptuning import PTuning
from .qlora import QLora

METHODS: dict[str, Callable[[Any], Method]] = {
    "full": lambda _: Full(),
    "partial": partial,
    "lora": Lora,
    "dora": Dora,
    "qlora": QLora,
    "adapter": Adapter,
    "ia3": lambda _: IA3(),
    "prompt": Prompt,
    "ptuning": PTuning,
    "prefix": Prefix,
    "probe": Probe,
}
"""Each is made from its own settings, see `finetune_api.methods`."""


def method_of(settings: Settings) -> Method:
    return METHODS[settings.type](settings.settings)
