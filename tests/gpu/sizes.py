"""How large everything is: on a card, and in the rehearsal on CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.gpu.arithmetic import Trains

Config = Mapping[str, Any]

_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
_ENDS = {"bos_token_id": 257, "eos_token_id": 258, "pad_token_id": 258}
"""Of the byte tokenizer, which every model of the kit has."""

LLAMA_1B: Config = {
    **_LLAMA, **_ENDS, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": True, "dtype": "bfloat16",
}  # fmt: skip
"""The shape of Llama-3.2-1B."""

LLAMA_8B: Config = {
    **_LLAMA, **_ENDS, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip
"""The shape of Llama-3.1-8B."""

_TINY: Config = {
    **_LLAMA, **_ENDS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 264, "max_position_embeddings": 512,
    "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip


@dataclass(frozen=True)
class Load:
    """A model, a way to train it and the tokens of a step: what is planned, timed and looked into."""

    title: str
    config: Config
    method: str
    tokens: int
    """Of a step, computed at once."""
    row: int
    """Tokens of a packed row."""
    document: int
    """Tokens of each document."""

    @property
    def documents(self) -> int:
        """Of a step."""
        return self.tokens // self.document

    @property
    def trains(self) -> Trains:
        return "all" if self.method == "full" else "adapter"


@dataclass(frozen=True)
class Sizes:
    small: Config
    """The model of what has to be right; in float32 on disk."""
    steps: int
    """Of runs that are held against each other."""
    few: int
    """Of runs of one method each."""
    loads: Mapping[str, Load]
    warm: int
    """Steps before the clock starts."""
    timed: int
    rounds: int
    """How often each side has its turn, while there is time."""
    profiled: int


def _loads(one: Config, eight: Config, *, tokens: tuple[int, int], row: int, document: int) -> dict[str, Load]:
    return {
        "1b-full": Load("1B, full", one, "full", tokens[0], row, document),
        "8b-lora": Load("8B, LoRA", eight, "lora", tokens[1], row, document),
        "8b-qlora": Load("8B, QLoRA", eight, "qlora", tokens[1], row, document),
    }


CARD = Sizes(
    small={**_TINY, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "head_dim": 64,
           "dtype": "float32"},
    steps=20, few=8, loads=_loads(LLAMA_1B, LLAMA_8B, tokens=(16384, 8192), row=4096, document=1024),
    warm=5, timed=20, rounds=2, profiled=5,
)  # fmt: skip

REHEARSAL = Sizes(
    small={**_TINY, "dtype": "float32"},
    steps=4, few=2, loads=_loads(_TINY, _TINY, tokens=(256, 256), row=128, document=32),
    warm=1, timed=3, rounds=1, profiled=2,
)  # fmt: skip
