"""Writes what is generated from the models: the CRD and docs/manifest.md. Tests compare the committed files."""

from __future__ import annotations

from pathlib import Path

from finetune_api import reference, schema

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    for path, text in (
        (ROOT / "crds" / "finetunejobs.finetune.dev.yaml", schema.crd_yaml()),
        (ROOT / "docs" / "manifest.md", reference.markdown()),
    ):
        path.write_text(text)
        print(f"generated {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
