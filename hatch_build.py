"""The page of the package index is README.md with links that work outside the repository."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_LINK = re.compile(r"""(?P<before>\]\(|\b(?:src|href|srcset)=["'])(?P<path>(?![a-z]+:|[#/])[^)\s"']+)""")
PICTURES = (".png", ".jpg", ".gif", ".svg", ".webp")


class ReadmeHook(MetadataHookInterface):
    """Fills in the dynamic field `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata["urls"]["Repository"]
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(readme, repository)}


def absolute(markdown: str, repository: str) -> str:
    """The text with links to files of the repository as addresses; pictures as the files themselves."""

    def address(match: re.Match[str]) -> str:
        kind = "raw" if match["path"].endswith(PICTURES) else "blob"
        return f"{match['before']}{repository}/{kind}/main/{match['path']}"

    return RELATIVE_LINK.sub(address, markdown)
