"""Builds the documentation as a site, and is MkDocs' hook for what it lacks (mkdocs.yml names it).

    python tools/docs_site.py [--out .site]      # <out>/<version>/ and, next to it, versions.json for the switch

Links to files outside docs/ work: the files come along under repository/. Mermaid blocks become the flow picture,
because the theme would load Mermaid from another host. llms.txt lists all pages, which are next to their HTML as
Markdown.
"""

from __future__ import annotations

import argparse
import html
import json
import logging
import os
import posixpath
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
EXTRA = "repository"
LINK = re.compile(r"\[([^\]\n]*(?:\n[^\]\n]+)?)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
MERMAID = re.compile(r"^```mermaid\n.*?^```$", re.M | re.S)
EXTERNAL = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=["']?(?:https?:)?//[^"'\s>]+""")
FONTS = re.compile(r"url\(\s*[\"']?(?:https?:)?//")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the documentation as a site.")
    parser.add_argument("--out", type=Path, default=ROOT / ".site", help="folder (default: .site)")
    out = parser.parse_args().out
    logging.basicConfig(format="site: %(message)s", level=logging.WARNING)
    written = built(out)
    print(f"site: {len(list(written.rglob('*.html')))} pages in {written}; to read it, with search:")
    print(f"  python -m http.server -d {out} 8000    # then http://localhost:8000")


def built(out: Path) -> Path:
    """The folder of the version that was built. Raises mkdocs' Abort for a broken link, anchor or navigation."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    folder = out / version
    shutil.rmtree(folder, ignore_errors=True)
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
    build(config)
    versions = [each.name for each in out.iterdir() if (each / "index.html").exists()]
    listed = [{"version": each, "title": each, "aliases": []} for each in sorted(versions, reverse=True)]
    (out / "versions.json").write_text(json.dumps(listed))
    (out / "index.html").write_text(f'<meta http-equiv="refresh" content="0; url={version}/index.html">\n')
    return folder


def external_requests(folder: Path) -> list[str]:
    """What a browser would fetch from another host, as file: element."""
    found = []
    for file in sorted(folder.rglob("*")):
        pattern = {".html": EXTERNAL, ".css": FONTS}.get(file.suffix)
        if pattern is not None:
            found += [f"{file.relative_to(folder)}: {hit}" for hit in pattern.findall(file.read_text())]
    return found


# --- MkDocs' events -------------------------------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Pages that the navigation does not name have a place in it all the same, under More."""
    docs, named = Path(config["docs_dir"]), set(_pages(config["nav"]))
    others = sorted({str(page.relative_to(docs)) for page in docs.rglob("*.md")} - named)
    if others:
        config["nav"] = [*config["nav"], {"More": others}]
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the files outside docs/ to which pages link, and those to which these link."""
    pending = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    seen = set(pending)
    while pending:
        source = pending.pop()
        for target in _targets(source):
            if target not in seen and (ROOT / target).is_file() and not target.startswith("docs/"):
                seen.add(target)
                content = (ROOT / target).read_bytes()
                files.append(File.generated(config, f"{EXTRA}/{target}", content=content))
                if target.endswith(".md"):
                    pending.append(target)
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Rewrites links that leave docs/ (a folder has no page: its name stays), and replaces Mermaid blocks."""
    here = page.file.src_uri
    source = here.removeprefix(f"{EXTRA}/") if here.startswith(f"{EXTRA}/") else f"docs/{here}"

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        if (ROOT / target).is_dir():
            return link[1]
        site = target.removeprefix("docs/") if target.startswith("docs/") else f"{EXTRA}/{target}"
        return f"[{link[1]}]({posixpath.relpath(site, posixpath.dirname(here) or '.')}{link[3] or ''})"

    picture = posixpath.relpath("flow.svg", posixpath.dirname(here) or ".")
    drawn = f"![A manifest becomes pods, checkpoints, an artifact and a status]({picture})"
    return MERMAID.sub(drawn, LINK.sub(moved, markdown))


def on_post_build(*, config: Any) -> None:
    """Writes llms.txt, and the pages as Markdown."""
    site, docs = Path(config["site_dir"]), Path(config["docs_dir"])
    (site / "llms.txt").write_text(llms(config["nav"], docs))
    for page in docs.rglob("*.md"):
        target = site / page.relative_to(docs)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, target)


def llms(nav: list[Any], docs: Path) -> str:
    """The index of all pages for language models: a section for each tab, a line for each page."""
    home = docs / "index.md"
    lines = ["# finetune-operator", "", f"> {summary(home)}"]
    for entry in nav:
        (title, value), *_ = entry.items()
        lines += ["", f"## {title}", ""]
        lines += [f"- [{heading(docs / page)}]({page}): {summary(docs / page)}" for page in _pages(value)]
    return "\n".join(lines) + "\n"


def heading(page: Path) -> str:
    return page.read_text().partition("# ")[2].partition("\n")[0]


def summary(page: Path) -> str:
    """The first paragraph that is prose, without markup, at most 200 characters of whole words."""
    paragraphs = page.read_text().split("\n\n")
    prose = next((each for each in paragraphs if re.match(r"[A-Z`*\[]", each) and "do not edit" not in each), "")
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(prose.split())).replace("`", "").replace("*", "")
    return html.unescape(text if len(text) <= 200 else text[:200].rpartition(" ")[0] + " …")


def _pages(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        return
    for entry in value:
        yield from _pages(entry if isinstance(entry, str) else next(iter(entry.values())))


def _targets(source: str) -> Iterator[str]:
    for link in LINK.finditer((ROOT / source).read_text()):
        yield posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))


if __name__ == "__main__":
    sys.exit(main())
