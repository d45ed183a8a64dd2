"""Every method by its name in the manifest. A new one is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Callable

from finetune_api.methods import Adapter as AdapterSettings
from finetune_api.methods import Lora as LoraSettings
from finetune_api.methods import Method as Settings
from finetune_api.methods import Prefix as PrefixSettings
from finetune_api.methods import Probe as ProbeSettings
from finetune_api.methods import Prompt as PromptSettings
from finetune_api.methods import PTuning as PTuningSettings

from .adapter import Adapter
from .base import Method
from .dora import Dora
from .full import Full
from .lora import Lora
from .partial import partial
from .prefix import Prefix
from .probe import Probe
from .prompt import Prompt
from .ptuning import PTuning
from .qlora import QLora

METHODS: dict[str, Callable[[Settings], Method]] = {
    "full": lambda _: Full(),
    "partial": lambda settings: partial(settings.partial),
    "lora": lambda settings: Lora(settings.lora or LoraSettings()),
    "dora": lambda settings: Dora(settings.dora or LoraSettings()),
    "qlora": lambda settings: QLora(settings.qlora or LoraSettings()),
    "adapter": lambda settings: Adapter(settings.adapter or AdapterSettings()),
    "prompt": lambda settings: Prompt(settings.prompt or PromptSettings()),
    "ptuning": lambda settings: PTuning(settings.ptuning or PTuningSettings()),
    "prefix": lambda settings: Prefix(settings.prefix or PrefixSettings()),
    "probe": lambda settings: Probe(settings.probe or ProbeSettings()),
}


def method_of(settings: Settings) -> Method:
    return METHODS[settings.type](settings)
