"""How long a sequence a model can place, and what becomes of a manifest that asks for more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.data import Data
from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method, Prefix
from finetune_trainer.planning.positions import fitted, most_positions

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}

CONFIGS: list[tuple[str, Any, int | None]] = [
    ("Llama", {"max_position_embeddings": 2048}, 2048),
    ("GPT-2", {"n_positions": 1024}, 1024),
    ("a model of text and images", {"text_config": {"max_position_embeddings": 4096}}, 4096),
    ("ALiBi", {"n_head": 4}, None),
    ("YaRN as in Qwen 2.5", {"max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),
    ("YaRN, told already", {"max_position_embeddings": 131072, "rope_parameters": YARN}, 131072),
    ("linear stretching", {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, 8192),
    ("no stretching", {"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default"}}, 4096),
]


@pytest.mark.parametrize(("config", "most"), [case[1:] for case in CONFIGS], ids=[case[0] for case in CONFIGS])
def test_positions_of_a_configuration(tmp_path: Path, config: Any, most: int | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert most_positions(tmp_path) == most


def test_a_folder_without_configuration_sets_no_limit(tmp_path: Path) -> None:
    assert most_positions(tmp_path) is None


@pytest.mark.parametrize(("asked", "given"), [(100, 100), (512, 512), (2048, 512)])
def test_what_fits_stays_and_the_default_gives_way(tmp_path: Path, asked: int, given: int) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 512}')
    data = Data.model_validate({"train": ({"uri": "file:///a.jsonl"},), "sequenceLength": asked})
    assert fitted(data, tmp_path, Method()).sequence_length == given


def test_more_than_the_model_knows_is_refused_with_the_number_to_use(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 512}')
    data = Data.model_validate({"train": ({"uri": "file:///a.jsonl"},), "sequenceLength": 4096})
    with pytest.raises(FinetuneError) as caught:
        fitted(data, tmp_path, Method())
    assert caught.value.reason is Reason.InvalidSpec
    assert "4096 is more than the 512 positions" in caught.value.message
    assert "data.sequenceLength: 512" in caught.value.hint


def test_virtual_tokens_take_positions_too(tmp_path: Path) -> None:
    """A table of 64 learned positions, of which 20 come before the first word."""
    (tmp_path / "config.json").write_text('{"n_positions": 64}')
    prompt, most = Method(type="prompt"), Method(type="prefix", prefix=Prefix(virtual_tokens=60))
    left_open = Data.model_validate({"train": ({"uri": "file:///a.jsonl"},)})
    assert fitted(left_open, tmp_path, prompt).sequence_length == 44
    assert fitted(left_open, tmp_path, Method(type="ptuning")).sequence_length == 44
    assert fitted(left_open, tmp_path, Method(type="adapter")).sequence_length == 64
    asked = left_open.model_copy(update={"sequence_length": 64})
    with pytest.raises(
        FinetuneError, match=r"64 positions that the model knows, of which virtual tokens take 20"
    ) as no:
        fitted(asked, tmp_path, prompt)
    assert "data.sequenceLength: 44" in no.value.hint
    with pytest.raises(FinetuneError, match="no sequence fits") as none:
        fitted(left_open, tmp_path, most)
    assert none.value.hint == "Set method.prefix.virtualTokens to at most 56."
