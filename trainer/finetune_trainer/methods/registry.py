"""Every method by its name in the manifest. A new one is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Callable

from finetune_api.methods import Lora as LoraSettings
from finetune_api.methods import Method as Settings

from .base import Method
from .full import Full
from .lora import Lora

METHODS: dict[str, Callable[[Settings], Method]] = {
    "full": lambda _: Full(),
    "lora": lambda settings: Lora(settings.lora or LoraSettings()),
}


def method_of(settings: Settings) -> Method:
    return METHODS[settings.type](settings)
