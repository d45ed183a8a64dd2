"""What `helm test` runs, in the trainer's image: makes a model of 0.2 million parameters and forty rows on the claim,
creates a FineTuneJob with them, waits until it is complete, looks for its artifact, and deletes both."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

NAMESPACE, NAME, CLAIM = os.environ["NAMESPACE"], os.environ["NAME"], os.environ["CLAIM"]
SECONDS = int(os.environ["TIMEOUT"])
FOLDER = Path("/claim") / NAME
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
JOBS = f"https://kubernetes.default.svc/apis/finetune.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs"


def make_model(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.add_special_tokens(["<s>", "</s>"])
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>").save_pretrained(
        folder
    )
    config = LlamaConfig(
        vocab_size=264, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=256, eos_token_id=257, pad_token_id=257,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def make_data(folder: Path) -> None:
    words = [f"{number * 7919 % 10007:05d}" for number in range(1, 41)]
    for name, rows in (("train", words[:32]), ("heldout", words[32:])):
        lines = [json.dumps({"prompt": f"backwards {word}: ", "completion": word[::-1]}) for word in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def job() -> dict[str, Any]:
    uri = f"pvc://{CLAIM}/{NAME}"
    near = {
        "labelSelector": {"matchLabels": {"finetune.dev/chart-test": NAME}},
        "topologyKey": "kubernetes.io/hostname",
    }
    affinity = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [near]}}
    given = json.loads(Path("/test/pod.json").read_text())
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "model": {"uri": f"{uri}/model"},
            "data": {
                "train": [{"uri": f"{uri}/train.jsonl"}],
                "validation": {"uri": f"{uri}/heldout.jsonl"},
                "sequenceLength": 128,
            },
            "training": {"maxSteps": 4, "batchSize": 4},
            "output": {"uri": f"{uri}/artifact"},
            "retry": {"maxRestarts": 0},
            "deadlines": {"active": f"{SECONDS}s"},
            "pod": {"affinity": affinity, **given},
        },
    }


def call(method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The object; None if there is none."""
    token = (ACCOUNT / "token").read_text()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers, method=method)
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    try:
        with urllib.request.urlopen(request, context=trust, timeout=30) as reply:
            found: dict[str, Any] = json.load(reply)
            return found
    except urllib.error.HTTPError as error:
        if error.code == 404 and method != "POST":
            return None
        if error.code == 409 and method == "DELETE":  # it changed meanwhile: whoever deletes looks again
            return None
        raise SystemExit(f"{method} {url}: {error.code} {error.read().decode(errors='replace')[:2000]}") from None


def delete_job() -> None:
    while call("GET", f"{JOBS}/{NAME}") is not None:
        call(
            "DELETE", f"{JOBS}/{NAME}", {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
        )
        time.sleep(1)


def main() -> None:
    delete_job()  # of a test that failed
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "model").mkdir(parents=True)
    make_model(FOLDER / "model")
    make_data(FOLDER)
    call("POST", JOBS, job())
    print(f"created the FineTuneJob {NAME} in {NAMESPACE}", flush=True)
    end, shown = time.monotonic() + SECONDS, ""
    while True:
        status = (call("GET", f"{JOBS}/{NAME}") or {}).get("status") or {}
        phase = status.get("phase", "")
        why = (status.get("lastFailure") or {}).get("message", "")
        if f"{phase} {why}" != shown:
            shown = f"{phase} {why}"
            print(shown.strip(), flush=True)
        if phase == "Succeeded":
            break
        if phase == "Failed" or time.monotonic() > end:
            sys.exit(f"the job did not succeed; it is kept: kubectl -n {NAMESPACE} describe finetunejob {NAME}")
        time.sleep(1)
    weights = sorted(file.name for file in (FOLDER / "artifact").iterdir() if file.is_file())
    if not any(name.endswith(".safetensors") for name in weights):
        sys.exit(f"no weights in the artifact: {', '.join(weights) or 'nothing'}")
    print(f"artifact: {', '.join(weights)}", flush=True)
    delete_job()
    shutil.rmtree(FOLDER)
    print("the operator trains: test passed", flush=True)


main()
