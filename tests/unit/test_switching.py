"""finetune switch-test: adapters on one base give what each gives alone; damaged ones are refused without a trace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_api.status import ResolvedPlan
from finetune_api.switching import Latency, SwitchTest
from finetune_trainer.cli.main import main
from finetune_trainer.report.html import render
from finetune_trainer.report.record import Provenance
from finetune_trainer.store.fingerprints import fingerprint_of
from finetune_trainer.switching.artifacts import find_all
from finetune_trainer.switching.files import CONFIG, WEIGHTS, Adapter, ServedBase, check
from finetune_trainer.switching.pool import Pool, shapes_of
from finetune_trainer.switching.protocol import prompts, switch_test
from finetune_trainer.train import switched
from tests.support.printed_json import conforms
from tests.support.small_artifact import committed
from tests.support.small_report import record
from tests.support.tiny_model import tiny_model

CONFIGS: dict[str, dict[str, Any]] = {
    "tickets": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "policy": {"r": 8, "target_modules": ["up_proj", "down_proj"]},
    "tone": {"r": 2, "target_modules": ["q_proj", "gate_proj"], "layers_to_transform": [1]},
}
RANK = 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def exported(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters of different ranks and layers, each of which changes every answer."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        network = get_peft_model(network_of(base), LoraConfig(task_type="CAUSAL_LM", **config))
        with torch.no_grad():
            for weight in network.parameters():
                if weight.requires_grad:
                    weight.normal_(std=0.5)
        network.save_pretrained(folder / name)
    return {name: folder / name for name in CONFIGS}


def network_of(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base).eval()


def served(base: Path, network: Any) -> ServedBase:
    return ServedBase(name=str(base), revision=None, weights="", shapes=shapes_of(network))


def adapters(exported: dict[str, Path]) -> list[Adapter]:
    return [Adapter(name=name, folder=folder) for name, folder in exported.items()]


def outcome(base: Path, exported: dict[str, Path], *, switches: int = 30, pool: type[Pool] = Pool) -> SwitchTest:
    network = network_of(base)
    return switch_test(
        network, served(base, network), adapters(exported), largest_rank=RANK, switches=switches, make_pool=pool
    )


def test_three_adapters_on_one_base_pass(base: Path, exported: dict[str, Path]) -> None:
    found = outcome(base, exported, switches=200)
    assert (found.verdict, found.reason) == ("passed", "")
    assert (found.adapters, found.switches, found.refused, found.largest_difference) == (3, 200, 4, 0.0)
    assert found.load is not None
    assert found.switch is not None
    assert found.merge is not None


def test_the_pool_gives_what_peft_gives_with_one_adapter(base: Path, exported: dict[str, Path]) -> None:
    network = network_of(base)
    pool, tokens = Pool(network, served(base, network), RANK), prompts(network, 1)
    for adapter in adapters(exported):
        pool.load(adapter)
    alone: list[Tensor] = []
    with torch.inference_mode():
        for name, folder in exported.items():
            pool.switch(name)
            alone.append(PeftModel.from_pretrained(network_of(base), folder).eval()(input_ids=tokens).logits)
            assert torch.equal(pool.logits(tokens), alone[-1])
        pool.switch(None)
        alone.append(network_of(base)(input_ids=tokens).logits)
        assert torch.equal(pool.logits(tokens), alone[-1])
        pool.close()
        assert torch.equal(network(input_ids=tokens).logits, alone[-1])
    assert not any(torch.equal(one, other) for at, one in enumerate(alone) for other in alone[:at])


class Mixing(Pool):
    """A server that forgets to switch the earlier adapter off."""

    def switch(self, name: str | None) -> None:
        super().switch(name)
        if self._model is not None and name is not None and len(self._keys) > 1:
            self._model.base_model.set_adapter([self._keys[name], next(iter(self._keys.values()))])


class Leaking(Pool):
    """A server that keeps every answer."""

    kept: list[Tensor] = []  # noqa: RUF012

    def logits(self, tokens: Tensor) -> Tensor:
        self.kept.append(super().logits(tokens).clone())
        return self.kept[-1]


class Careless(Pool):
    """A server that finds out about a fault when half of the adapter is loaded, and leaves that half."""

    def load(self, adapter: Adapter) -> None:
        if "damaged" in adapter.folder.name and self._model is not None:
            self._model.add_adapter(f"half{len(self._model.peft_config)}", LoraConfig(r=4, target_modules=["q_proj"]))
            self.switch(None)
        super().load(adapter)


class Trusting(Pool):
    """A server that does not look at the name of the base."""

    def load(self, adapter: Adapter) -> None:
        config = json.loads((adapter.folder / CONFIG).read_text())
        named = config["base_model_name_or_path"]
        (adapter.folder / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": self.base.name}))
        super().load(adapter)
        (adapter.folder / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": named}))


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (Mixing, "gives other logits than alone, by up to"),
        (Leaking, "bytes of tensors more than before 30 switches"),
        (Careless, "parts of adapter tickets of another base stayed in the network"),
        (Trusting, "adapter tickets of another base was loaded"),
    ],
)
def test_a_server_with_a_fault_fails(
    pool: type[Pool], reason: str, base: Path, exported: dict[str, Path], tmp_path: Path
) -> None:
    mine = {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in exported.items()}
    found = outcome(base, mine, pool=pool)
    assert found.verdict == "failed"
    assert reason in found.reason
    Leaking.kept.clear()


def change(name: str, value: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | {name: value}))

    return damage


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])


def write(text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / CONFIG).write_text(text)

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


UNREADABLE, UNSUPPORTED = Reason.DataUnreadable, Reason.ModelUnsupported
FAULTS: list[tuple[str, Callable[[Path], None], Reason, str]] = [
    ("another base", change("base_model_name_or_path", "org/other"), UNSUPPORTED, "was trained on org/other"),
    ("a rank above the maximum", change("r", 9), UNSUPPORTED, "rank 9, and the server's maximum is 8"),
    ("another rank than its weights", change("r", 7), UNSUPPORTED, "(7, 64) would fit"),
    ("no rank", change("r", "4"), UNREADABLE, "has no rank"),
    ("DoRA", change("use_dora", True), UNSUPPORTED, "use_dora is set"),
    ("truncated weights", cut, UNREADABLE, f"{WEIGHTS} cannot be used: it has"),
    ("no weights", remove(WEIGHTS), UNREADABLE, f"{WEIGHTS} cannot be used: it is missing"),
    ("no configuration", remove(CONFIG), UNREADABLE, f"{CONFIG} cannot be used: it is missing"),
    ("a list as configuration", write("[]"), UNREADABLE, "not a JSON object"),
    ("a long configuration", write(" " * (1 << 21)), UNREADABLE, "more than"),
    ("a nested configuration", write("[" * 9999), UNREADABLE, "cannot be used"),
]


@pytest.mark.parametrize(("damage", "reason", "message"), [case[1:] for case in FAULTS], ids=[c[0] for c in FAULTS])
def test_an_adapter_with_a_fault_is_refused_and_the_others_keep_serving(
    damage: Callable[[Path], None], reason: Reason, message: str, base: Path, exported: dict[str, Path], tmp_path: Path
) -> None:
    network = network_of(base)
    pool, tokens = Pool(network, served(base, network), RANK), prompts(network, 1)
    before = pool.logits(tokens)
    pool.load(Adapter(name="policy", folder=exported["policy"]))
    pool.switch("policy")
    answered = pool.logits(tokens)
    copy = Path(shutil.copytree(exported["tickets"], tmp_path / "copy"))
    damage(copy)
    with pytest.raises(FinetuneError, match=r".") as refused:
        pool.load(Adapter(name="bad", folder=copy))
    assert refused.value.reason is reason
    assert message in refused.value.message
    assert torch.equal(pool.logits(tokens), answered)
    pool.switch(None)
    assert torch.equal(pool.logits(tokens), before)


def test_what_only_the_files_together_show_is_refused(base: Path, exported: dict[str, Path], tmp_path: Path) -> None:
    """Layers that the base lacks, one factor of two, and weights that the configuration asks for in vain."""
    from safetensors.torch import load_file, save_file

    network = network_of(base)
    copy = Path(shutil.copytree(exported["tickets"], tmp_path / "copy"))
    weights = load_file(copy / WEIGHTS)
    first = next(key for key in weights if "lora_A" in key)
    layer = first.removesuffix(".lora_A.weight")
    changes: dict[str, dict[str, Tensor]] = {
        "a layer base": {key.replace("layers.1", "layers.7"): value for key, value in weights.items()},
        "one factor of two": {key: value for key, value in weights.items() if key != first},
        "weights are missing": {key: value for key, value in weights.items() if not key.startswith(layer)},
    }
    pool = Pool(network, served(base, network), RANK)
    before = pool.parameters()
    for message, changed in changes.items():
        save_file(changed, copy / WEIGHTS)
        with pytest.raises(FinetuneError) as refused:
            pool.load(Adapter(name="bad", folder=copy))
        assert all(word in refused.value.message for word in message.split())
        assert pool.parameters() == before


def test_other_weights_of_a_base_of_the_same_name_are_another_base(base: Path, exported: dict[str, Path]) -> None:
    adapter = Adapter(name="tickets", folder=exported["tickets"], base_weights="one")
    mine = ServedBase(name=str(base), revision=None, weights="two", shapes={})
    with pytest.raises(FinetuneError, match="other weights"):
        check(adapter, mine, largest_rank=RANK)


def test_the_fingerprint_of_a_base_follows_its_weights(base: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", seed=1)
    again = tiny_model(tmp_path / "again")
    assert fingerprint_of(base) == fingerprint_of(again) != fingerprint_of(other)


def artifact(folder: Path, of: Path, base: Path, **origin: Any) -> str:
    shutil.copytree(of, folder)
    origin |= {"base_model": base.as_uri(), "model_class": "LlamaForCausalLM"}
    committed(folder, record(plan=ResolvedPlan(method="lora"), provenance=Provenance(**origin)))
    return str(folder)


def test_the_command_prints_what_it_found(
    base: Path, exported: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = fingerprint_of(base)
    named = [artifact(tmp_path / name, folder, base, base_weights=weights) for name, folder in exported.items()]
    command = ["switch-test", *named, "--switches", "5", "--home", str(tmp_path / "home")]
    assert main([*command, "-o", "json"]) == ExitCode.OK
    printed = json.loads(capsys.readouterr().out)
    conforms("switch-test", printed)
    assert (printed["result"]["verdict"], printed["adapters"][1]["name"], printed["maxRank"]) == ("passed", "policy", 8)
    assert main(command) == ExitCode.OK
    shown = capsys.readouterr().out
    for line in ("adapter policy", "rank 8", "time to merge", "verdict", "passed"):
        assert line in shown
    assert main([*command, "--max-rank", "4"]) == ExitCode.CONFIG
    assert "rank 8, and the server's maximum is 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prepare", "status", "said"),
    [
        (
            lambda folder: (folder / WEIGHTS).write_bytes(b"x" * 40),
            ExitCode.DATA,
            "is not the file that the",
        ),
        (lambda folder: (folder / "manifest.json").unlink(), ExitCode.DATA, "there is no artifact in"),
    ],
)
def test_the_command_refuses_artifacts_that_are_not_whole(
    prepare: Callable[[Path], None], status: int, said: str, base: Path, exported: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    named = artifact(tmp_path / "tickets", exported["tickets"], base)
    prepare(tmp_path / "tickets")
    assert main(["switch-test", named, "--home", str(tmp_path / "home")]) == status
    assert said in capsys.readouterr().err


def test_the_command_refuses_bases_that_differ_and_artifacts_named_twice(
    base: Path, exported: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = artifact(tmp_path / "tickets", exported["tickets"], base)
    other = artifact(tmp_path / "policy", exported["policy"], base, base_weights="0" * 64)
    home = ["--home", str(tmp_path / "home")]
    assert main(["switch-test", first, other, *home]) == ExitCode.CONFIG
    assert "other weights of" in capsys.readouterr().err
    assert main(["switch-test", first, f"{first}/", *home]) == ExitCode.CONFIG
    assert "named twice" in " ".join(capsys.readouterr().err.split())  # lines are wrapped


def test_adapters_whose_folders_have_the_same_name_keep_names_of_their_own(
    base: Path, exported: dict[str, Path], tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("x/tone", "y/tone", "z/tone-1")]
    for folder in folders:
        folder.parent.mkdir()
    named = [Path(artifact(folder, exported["tone"], base)).as_uri() for folder in folders]
    found = [each.adapter.name for each in find_all(named, cache=tmp_path / "cache")]
    assert found == ["tone-1", "tone-2", "tone-1-3"]
    assert [each.adapter.name for each in find_all(named[1:], cache=tmp_path / "cache")] == ["tone", "tone-1"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (torch.OutOfMemoryError("tried to allocate 2 GiB"), "OutOfMemoryError: tried to allocate 2 GiB"),
        (FinetuneError(Reason.DataNotFound, "there is no artifact in s3://a/b"), "there is no artifact in s3://a/b"),
    ],
)
def test_what_goes_wrong_in_the_test_does_not_cost_the_run_its_artifact(
    fault: Exception, reason: str, base: Path, exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(switched, "find_all", fails)
    network = SimpleNamespace(unload=lambda: network_of(base))
    setup = SimpleNamespace(
        spec=SimpleNamespace(output=SimpleNamespace(switch_test=("s3://a/b",))),
        attached=SimpleNamespace(adapter=network),
        trainer=SimpleNamespace(reporter=SimpleNamespace(phase=lambda *_: None, say=lambda _: None, alive=None)),
        local=SimpleNamespace(path=base, loadable=str(base), revision=None),
        plan=SimpleNamespace(job=SimpleNamespace(name="tone")),
    )
    found = switched.switched(cast(Any, setup), exported["tone"])
    assert found is not None
    assert (found.verdict, found.reason, found.adapters) == ("failed", reason, 2)


def test_the_report_shows_it() -> None:
    times = Latency(median=0.4, p95=0.61)
    found = SwitchTest(verdict="passed", adapters=3, switches=200, refused=4, largest_difference=0.0, switch=times)
    page = render(record(switch_test=found))
    assert "Switching adapters" in page
    assert "0.4 ms, 95th percentile 0.61 ms" in page
    assert "Switching adapters" not in render(record())
    failed = SwitchTest(verdict="failed", reason="adapter a is gone", adapters=2, switches=0)
    assert failed.told() == "failed: adapter a is gone (2 adapters on one base, 0 switches)"
