"""Hooks of mkdocs: pictures that lie outside docs/ become part of the site."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "birds"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures that come with the shipped models."""
    for path in sorted(ASSETS.glob("*.png")):
        files.append(File.generated(config, f"images/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point to them where the site has them."""
    return markdown.replace("](../assets/birds/", "](images/")
