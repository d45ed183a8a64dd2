"""Which row of the files a measured document is, what it depends on, and which of them evaluation.maxRows draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.data import Data
from finetune_trainer.data.load import Datasets, load_datasets
from finetune_trainer.data.sample import measured_part
from tests.support.tokenizers import tokenizer_folder, write_jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer_folder(folder)
    return folder


def rows(count: int, **more: object) -> list[dict[str, object]]:
    return [{"text": f"row {n}", "label": ("no", "yes")[n % 2], **more} for n in range(count)]


def load(folder: Path, model: Path, *, group_by: str | None = None, **sources: list[dict[str, object]]) -> Datasets:
    files = {name: write_jsonl(folder / f"{name}.jsonl", *given) for name, given in sources.items()}
    spec: dict[str, Any] = {"train": ({"uri": files.pop("train")},), "sequenceLength": 128, "allowDuplicates": True}
    spec |= {name: {"uri": uri} for name, uri in files.items()}
    data = Data.model_validate(spec)
    return load_datasets(data, tokenizer_path=model, cache=folder / "cache", seed=1, group_by=group_by)


def digests(data: Datasets, name: str = "test") -> tuple[list[int], list[int]]:
    corpus = getattr(data, name)
    assert corpus.marks is not None
    return corpus.marks.rows.tolist(), corpus.marks.groups.tolist()


def test_a_row_is_known_by_its_content_wherever_it_stands(tmp_path: Path, model: Path) -> None:
    first, _ = digests(load(tmp_path, model, train=rows(30), test=rows(9)))
    other, _ = digests(load(tmp_path, model, train=rows(30), test=rows(9)[::-1]))
    assert other == first[::-1]
    assert len(set(first)) == 9
    relabelled = [{**row, "label": "yes"} for row in rows(9)]
    changed, _ = digests(load(tmp_path, model, train=rows(30), test=relabelled))
    assert [a == b for a, b in zip(first, changed, strict=True)] == [row["label"] == "yes" for row in rows(9)]


def test_each_row_is_a_group_of_its_own_unless_a_key_says_otherwise(tmp_path: Path, model: Path) -> None:
    patients = [{**row, "patient": n // 3} for n, row in enumerate(rows(9))]
    alone, groups = digests(load(tmp_path, model, train=rows(30), test=patients))
    assert groups == alone
    same, groups = digests(load(tmp_path, model, train=rows(30), test=patients, group_by="patient"))
    assert same == alone
    assert [groups.count(group) for group in groups] == [3] * 9
    without = [*patients[:6], *rows(9)[6:]]
    _, groups = digests(load(tmp_path, model, train=rows(30), test=without, group_by="patient"))
    assert sorted(groups.count(group) for group in groups) == [1, 1, 1, 3, 3, 3, 3, 3, 3]


def test_windows_of_a_long_document_are_one_group(tmp_path: Path, model: Path) -> None:
    general: list[dict[str, object]] = [{"text": "prose " * 60}, {"text": "verse " * 60}, {"text": "short"}]
    each, groups = digests(load(tmp_path, model, train=rows(30), general=general), "general")
    assert len(each) == len(set(each)) > 5
    assert len(set(groups)) == 3
    assert groups == sorted(groups, key=groups.index)


def test_held_out_training_rows_keep_their_marks(tmp_path: Path, model: Path) -> None:
    data = load(tmp_path, model, train=rows(60), test=rows(60))
    everything, _ = digests(data)
    held, _ = digests(data, "validation")
    trained, _ = digests(data, "train")
    assert len(held) == 3
    assert sorted(held + trained) == sorted(everything)


def test_a_sample_is_drawn_by_content_and_seed_and_grows(tmp_path: Path, model: Path) -> None:
    data = load(tmp_path, model, train=rows(30), test=rows(60), general=[{"text": "prose"}])
    turned = load(tmp_path, model, train=rows(30), test=rows(60)[::-1], general=[{"text": "prose"}])

    def drawn(given: Datasets, most: int, seed: int = 1) -> set[int]:
        part, larger = measured_part(given, most=most, seed=seed)
        assert larger == {"test": 60}
        assert part.test is not None
        assert part.test.choices is not None
        assert len(part.test) == len(part.test.choices.gold) == most
        assert part.general is given.general
        return set(digests(part)[0])

    assert drawn(data, 20) == drawn(turned, 20) < drawn(data, 40)
    assert drawn(data, 20) != drawn(data, 20, seed=2)
    assert measured_part(data, most=None, seed=1) == (data, {})
    part, larger = measured_part(data, most=20, seed=1)
    assert part.validation is data.validation
    assert np.count_nonzero(np.isin(digests(data)[0], digests(part)[0])) == 20
    assert larger == {"test": 60}
