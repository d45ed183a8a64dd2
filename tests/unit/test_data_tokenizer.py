"""Our reading of a model's tokenizer files is transformers' reading."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.tokenizer import Tokenizer
from tests.support.tokenizers import CHATML, byte_level, real_model, sentencepiece_like, tiny, tokenizer_folder

TEXTS = ["", "hello world", "  two  spaces\n\n", "naïve 😀 日本", "a<|im_end|>b", "x" * 300, "In 2024, 3.14"]
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello\n\nworld"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "日本 <b>&amp;</b>"}],
]
RICH = (
    "{{ bos_token }}{%- set ns = namespace(n=0) %}\n  {% for m in messages if m.role != 'tool' %}\n"
    "    {%- set ns.n = ns.n + 1 %}{% if ns.n > 2 %}{% break %}{% endif %}\n"
    "  {{- m | tojson }}{{ tools | tojson(indent=2) if tools else 'none' }}{{ strftime_now is defined }}\n{% endfor %}"
    "{{ pad_token }}{% if add_generation_prompt %}>{% endif %}"
)


def with_transformers(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def assert_same(folder: Path) -> None:
    ours, theirs = Tokenizer.load(folder), with_transformers(folder)
    for text, encoded in zip(TEXTS, ours.encode(TEXTS), strict=True):
        assert encoded.ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
        with_bos = [] if ours.bos is None else [ours.bos]
        assert with_bos + encoded.ids.tolist() == theirs(text)["input_ids"]
    assert (ours.eos, ours.pad) == (theirs.eos_token_id, theirs.pad_token_id)
    for chat in CHATS:
        for prompt in (False, True):
            rendered = ours.chat([{}]).render(chat, tools=[{"name": "é<"}], prompt=prompt).text
            options = {"tools": [{"name": "é<"}], "add_generation_prompt": prompt}
            assert rendered == theirs.apply_chat_template(chat, tokenize=False, **options)
            together = theirs.apply_chat_template(chat, tokenize=True, return_dict=False, **options)
            assert ours.encode([rendered])[0].ids.tolist() == together


@pytest.mark.parametrize("template", [CHATML, RICH], ids=["chatml", "rich"])
def test_a_tiny_tokenizer(tmp_path: Path, template: str) -> None:
    assert_same(tokenizer_folder(tmp_path, template=template))


def test_the_tokenizer_itself_says_whether_texts_begin_with_a_token(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path, add_bos_token=True)
    assert Tokenizer.load(folder).bos is None
    assert_same(folder)


def test_a_tokenizer_that_begins_texts_by_itself(tmp_path: Path) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    folder = tokenizer_folder(tmp_path, backend=sentencepiece_like(), template=RICH, **names)
    assert Tokenizer.load(folder).bos == 1
    assert_same(folder)


def test_limits_saved_with_the_tokenizer_cut_and_pad_nothing(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    tokenizer = tiny(tmp_path, backend=backend)
    assert [len(encoded.ids) for encoded in tokenizer.encode(["stuvwxyz", "a"])] == [8, 1]


def test_a_template_within_the_configuration(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    tokenizer = tiny(tmp_path, template=None, chat_template=named)
    assert tokenizer.chat().render(CHATS[0]).text.startswith("<|im_start|>user\nHi")


TOOLS = [{"type": "function", "function": {"name": "lookup"}}]
NAMED = {"default": CHATML, "tool_use": "{{ tools | tojson }}" + CHATML, "rag": "no"}


@pytest.mark.parametrize("in_files", [False, True], ids=["in the configuration", "in files"])
def test_the_template_for_tools_is_chosen_as_transformers_does(tmp_path: Path, in_files: bool) -> None:
    named = [{"name": name, "template": text} for name, text in NAMED.items()]
    folder = tokenizer_folder(tmp_path, template=None, **({} if in_files else {"chat_template": named}))
    if in_files:
        (folder / "chat_template.jinja").write_text(NAMED["default"])
        (folder / "additional_chat_templates").mkdir()
        for name in ("tool_use", "rag"):
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(NAMED[name])
    ours, theirs = Tokenizer.load(folder), with_transformers(folder)
    for tools in (None, TOOLS):
        rendered = ours.chat(tools).render(CHATS[0], tools=tools).text
        assert rendered == theirs.apply_chat_template(CHATS[0], tools=tools, tokenize=False)
        assert ("lookup" in rendered) == bool(tools)


def test_a_template_for_tools_alone(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": NAMED["tool_use"]}]
    tokenizer = tiny(tmp_path, template=None, chat_template=named)
    assert "lookup" in tokenizer.chat(TOOLS).render(CHATS[0], tools=TOOLS).text
    with pytest.raises(FinetuneError, match="chat templates tool_use and none named default") as caught:
        tokenizer.chat()
    assert caught.value.reason is Reason.ModelUnsupported


def test_special_tokens_that_only_the_configuration_names(tmp_path: Path) -> None:
    token = {"content": "<extra>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    folder = tokenizer_folder(
        tmp_path, pad_token={"content": "<pad>", "__type": "AddedToken"}, added_tokens_decoder={"300": token}
    )
    tokenizer = Tokenizer.load(folder)
    assert "<extra>" in tokenizer.stops.control
    assert tokenizer.pad == tokenizer.backend.token_to_id("<pad>") != tokenizer.eos


BROKEN: list[tuple[str, dict[str, str], str]] = [
    ("no tokenizer", {}, "there is no tokenizer.json"),
    ("a broken one", {"tokenizer.json": "{}"}, "cannot be read"),
    (
        "nested settings",
        {"tokenizer.json": byte_level().to_str(), "tokenizer_config.json": "[" * 100_000},
        "is not valid JSON",
    ),
    ("broken settings", {"tokenizer.json": byte_level().to_str(), "tokenizer_config.json": "{"}, "is not valid JSON"),
    ("a broken template", {"tokenizer.json": byte_level().to_str(), "chat_template.jinja": "{% for %}"}, "is broken"),
]


@pytest.mark.parametrize(("files", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_folders_that_cannot_be_used(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(FinetuneError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.reason is Reason.ModelUnsupported


def test_the_data_room_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, json, finetune_trainer.data.load, finetune_trainer.data.pack, finetune_trainer.data.order;"
        "print(json.dumps([m for m in ('torch', 'transformers') if m in sys.modules]))"
    )
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) == []


@pytest.mark.real_model
def test_the_real_tokenizer() -> None:
    assert_same(real_model())
