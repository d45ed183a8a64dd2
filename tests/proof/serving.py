"""What `finetune serve-manifest --for kserve` prints, validated with KServe's own CustomResourceDefinition.

    python -m tests.proof.serving serving.kserve.io_llminferenceservices.yaml

The file is in config/crd/full/llmisvc/ of the repository kserve/kserve. It is read with every field refused that it
does not name, in each version that it serves. The Python package kserve (0.21.0) names no field of the spec, so it
proves less.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator

from finetune_trainer.cli.serving import kserve
from tests.unit.test_cli_serving import KSERVE


def closed(schema: Any) -> Any:
    """The schema, which then takes no field but those it has."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **found} if isinstance(schema.get("properties"), dict) else found


def checked(definition: dict[str, Any]) -> Iterator[str]:
    """A line for each version. AssertionError for an object that does not fit."""
    for version in definition["spec"]["versions"]:
        spec = closed(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
        for name, given, _ in KSERVE:
            problems = [error.message for error in Draft7Validator(spec).iter_errors(kserve(given)[1]["spec"])]
            assert problems == [], (version["name"], name, problems)
        assert list(Draft7Validator(spec).iter_errors({"modle": {}})), "the schema refuses nothing"
        yield f"{version['name']}: {len(KSERVE)} objects fit"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("definition", type=Path, help="KServe's CustomResourceDefinition, as YAML")
    print("\n".join(checked(yaml.load(parser.parse_args().definition.read_text(), Loader=yaml.CSafeLoader))))


if __name__ == "__main__":
    main()
