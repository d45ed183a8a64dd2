"""Writes what is generated: the CRD and docs/manifest.md from the models; docs/metrics.md, docs/reasons.md and heads
of docs/runbooks.md from the records of series and failure classes; docs/models.md from the committed results of
`make proof`; docs/cli.md from the command's parser; the chart's values, schema and copies; operator/install.yaml
from the chart; and tools/images.toml from pyproject.toml. Tests compare the committed files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from finetune_api import reason_page, reference, schema

ROOT = Path(__file__).resolve().parents[1]
RUNBOOKS = ROOT / "docs" / "runbooks.md"


def main() -> None:
    argparse.ArgumentParser(description="Writes the CRD and the manifest reference from the models.").parse_args()
    for path, text in (
        (ROOT / "crds" / "finetunejobs.finetune.dev.yaml", schema.crd_yaml()),
        (ROOT / "docs" / "manifest.md", reference.markdown()),
        (ROOT / "docs" / "metrics.md", reference.metrics()),
        (ROOT / "docs" / "reasons.md", reason_page.page()),
        (RUNBOOKS, reference.with_heads(RUNBOOKS.read_text())),
    ):
        path.write_text(text)
        print(f"generated {path.relative_to(ROOT)}")
    sys.path.insert(0, str(ROOT))
    from tests.matrix import table

    table.PAGE.write_text(table.written())
    print(f"generated {table.PAGE.relative_to(ROOT)}")
    from tests.cluster.rig.state import Paths
    from tools import chart, cli_page, image_lock, install_manifest

    (ROOT / "docs" / "cli.md").write_text(cli_page.page())
    print("generated docs/cli.md")
    cli_page.FOLDER.mkdir(exist_ok=True)
    for path, text in cli_page.schema_files().items():
        path.write_text(text)
    print("generated docs/json")
    image_lock.PACKAGES.write_text(image_lock.generated())
    print(f"generated {image_lock.PACKAGES.relative_to(ROOT)}")
    for path, text in chart.generated().items():
        path.write_text(text)
        print(f"generated {path.relative_to(ROOT)}")
    helm = Paths().bin / "helm"
    if helm.exists():
        install_manifest.FILE.write_text(install_manifest.rendered(helm))
        print(f"generated {install_manifest.FILE.relative_to(ROOT)}")
    else:
        print("operator/install.yaml is as it was: the chart's tests (make integration) build Helm, which renders it")


if __name__ == "__main__":
    main()
