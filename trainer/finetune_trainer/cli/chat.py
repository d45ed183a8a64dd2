"""`finetune chat ARTIFACT`: the answers of the base and of the tuned model to one prompt, next to each other.

The prompt is put to both models as the training rows were: through the chat template for chats, as the question that a
classification asks, and as it is for completions and texts. Each prompt is answered on its own.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from finetune_api import names
from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_api.methods import TRAITS, Traits
from finetune_api.text import printable
from finetune_trainer.cli.compare import uri_of
from finetune_trainer.cli.jobs import Where
from finetune_trainer.methods.lean import lean_peft
from finetune_trainer.report.record import RunRecord, read_record
from finetune_trainer.store.artifact import read_manifest
from finetune_trainer.store.fetch import fetch_folder
from finetune_trainer.store.models import resolve_model
from finetune_trainer.store.opening import open_folder

Written = Callable[[str, str], None]
"""("base" or "tuned", the next piece of its answer)."""
NARROW = 60
"""Columns below which the answers are printed one after the other."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was asked for on the command line."""

    prompt: str | None
    """None: read prompts until the input ends."""
    max_new_tokens: int
    temperature: float
    """0: the most probable token each time."""
    seed: int
    raw: bool
    as_json: bool


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Both models, ready to answer. They share a network where the adapter can be switched off."""

    record: RunRecord
    tokenizer: Any
    base: Any
    tuned: Any
    switched_off: Callable[[], AbstractContextManager[None]]
    """In it, `base` is the untouched model."""

    def answers(self, prompt: str, wish: Wish, written: Written | None = None) -> tuple[str, str]:
        """(base, tuned). `written` gets each piece of text as soon as it is known."""
        text, has_bos = (prompt, False) if wish.raw else prompt_of(self.record, self.tokenizer, prompt)
        tokens = self.tokenizer(text, return_tensors="pt", add_special_tokens=not has_bos).to(self.base.device)
        with self.switched_off():
            before = self._answer(self.base, tokens, wish, stops=(), written=written and partial(written, "base"))
        stops, of_tuned = self.record.eos_token_ids, written and partial(written, "tuned")
        return before, self._answer(self.tuned, tokens, wish, stops=stops, written=of_tuned)

    def _answer(
        self, network: Any, tokens: Any, wish: Wish, *, stops: tuple[int, ...], written: Callable[[str], None] | None
    ) -> str:
        import torch

        torch.manual_seed(wish.seed)
        sampling = {"do_sample": True, "temperature": wish.temperature} if wish.temperature else {"do_sample": False}
        more: dict[str, Any] = {"eos_token_id": list(stops)} if stops else {}
        more |= {"pad_token_id": self.tokenizer.pad_token_id, "max_new_tokens": wish.max_new_tokens}
        if written is not None:
            more["streamer"] = _streamer(self.tokenizer, written)
        with torch.inference_mode():
            ids = network.generate(**tokens, **sampling, **more)
        answer = self.tokenizer.decode(ids[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
        return printable(str(answer)).strip()


def chat(target: str, where: Where, wish: Wish) -> int:
    """Answers one prompt, or each line of the input."""
    pair = load(uri_of(target, where), cache=where.home.absolute() / "cache")
    for prompt in [wish.prompt] if wish.prompt is not None else _lines():
        streams = sys.stdout.isatty() and not wish.as_json
        before, after = _streamed(pair, prompt, wish) if streams else pair.answers(prompt, wish)
        if wish.as_json:
            print(json.dumps({"prompt": prompt, "base": before, "tuned": after}, ensure_ascii=False), flush=True)
        else:
            print("\n".join(side_by_side(before, after, width=shutil.get_terminal_size().columns)), flush=True)
    return ExitCode.OK


def _streamed(pair: Pair, prompt: str, wish: Wish) -> tuple[str, str]:
    """Shows both columns while they are written, as much of their ends as the terminal has lines for."""
    from rich.live import Live
    from rich.text import Text

    size = shutil.get_terminal_size()
    texts = {"base": "", "tuned": ""}
    with Live(transient=True, refresh_per_second=8) as live:

        def written(side: str, piece: str) -> None:
            texts[side] += printable(piece)
            lines = side_by_side(texts["base"], texts["tuned"], width=size.columns)
            live.update(Text("\n".join(lines[-max(1, size.lines - 1) :])))

        return pair.answers(prompt, wish, written)


def _streamer(tokenizer: Any, written: Callable[[str], None]) -> Any:
    """Pieces are whole characters and, where there are spaces, whole words."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):  # type: ignore[misc]  # transformers is untyped here
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002  # its name is asked for
            written(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _lines() -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    print("Each line is a prompt of its own. Ctrl-D ends.")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line:
            yield line


def side_by_side(before: str, after: str, *, width: int) -> list[str]:
    """Two columns, or one below the other where the terminal is narrow."""
    if width < NARROW:
        return ["base", *before.splitlines(), "", "tuned", *after.splitlines()]
    column = (width - 3) // 2
    left, right = (_wrapped(text, column) for text in (before, after))
    rows = [("base", "tuned"), ("-" * column, "-" * column), *zip_longest(left, right, fillvalue="")]
    return [f"{a:<{column}}   {b}".rstrip() for a, b in rows]


def _wrapped(text: str, width: int) -> list[str]:
    return [part for line in text.splitlines() or [""] for part in textwrap.wrap(line, width) or [""]]


def prompt_of(record: RunRecord, tokenizer: Any, text: str) -> tuple[str, bool]:
    """The text up to the answer, as in the training rows; and whether the template has put the first token there."""
    statistics = record.data.statistics
    form = statistics.format if statistics is not None else "chat"
    if form not in ("chat", "classification"):
        return text, False
    if form == "classification":
        assert statistics is not None
        asked = record.spec.data.classification.instruction if record.spec.data.classification else None
        question = asked or f"Classify the text. Answer with one of: {', '.join(statistics.labels)}."
        if not tokenizer.chat_template:
            return f"{text}\nLabel:", False
        text = f"{question}\n\n{text}"
    if not tokenizer.chat_template:
        return text, False
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), True


def load(uri: str, *, cache: Path) -> Pair:
    """Fetches an artifact and its base model, and loads both. ModelUnsupported for methods that write no text."""
    folder = open_folder(uri, prefix=names.PREFIX_OUTPUT)
    manifest, record = read_manifest(folder), read_record(folder)
    method = record.plan.method or record.spec.method.type
    traits = TRAITS.get(method)
    if traits is not None and traits.labels_only:
        hint = "Its model card shows how to use it; `finetune compare` shows how often it is right."
        raise FinetuneError(Reason.ModelUnsupported, f"{uri} is a classifier, which writes no text", hint)
    top = [re.sub(r"([*?[])", r"[\1]", name) for name in manifest.files if "/" not in name]
    own = fetch_folder(uri, prefix=names.PREFIX_OUTPUT, cache=cache, patterns=top)
    base = resolve_model(record.base_of(uri), cache=cache).path
    with lean_peft(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between PEFT and transformers
        return _pair(traits, record, base, own)


def _pair(traits: Traits | None, record: RunRecord, base: Path, own: Path) -> Pair:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    library = traits.library if traits is not None else "transformers"
    untouched, off = network_in(record, base), nullcontext
    if library == "peft":
        tuned, off = _with_peft(record, untouched, base, own)
    elif library == "transformers":
        tuned = network_in(record, own)
    else:
        assert traits is not None
        tuned = importlib.import_module(f"finetune_trainer.methods.{traits.name}").load(network_in(record, base), own)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(own)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Pair(record=record, tokenizer=tokenizer, base=untouched, tuned=tuned, switched_off=off)


def _with_peft(record: RunRecord, untouched: Any, base: Path, own: Path) -> tuple[Any, Any]:
    from peft import PeftConfig, PeftModel

    from finetune_trainer.methods.peft_layout import switched_off

    if PeftConfig.from_pretrained(own).is_prompt_learning:  # its network cannot be the untouched one at the same time
        return PeftModel.from_pretrained(network_in(record, base), own).eval(), nullcontext
    tuned = PeftModel.from_pretrained(untouched, own).eval()
    return tuned, lambda: switched_off(tuned)


def network_in(record: RunRecord, folder: Path) -> Any:
    """The network in a folder, on a GPU if there is one: in its own type there, in float32 on CPUs."""
    import torch
    import transformers

    given = record.provenance.model_class
    kind: Any = getattr(transformers, given if given.endswith("ForConditionalGeneration") else "AutoModelForCausalLM")
    on_gpu = torch.cuda.is_available()
    network = kind.from_pretrained(folder, dtype="auto" if on_gpu else torch.float32, local_files_only=True)
    return network.to("cuda" if on_gpu else "cpu").eval()
