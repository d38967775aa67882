"""Write tests/golden/openapi.json, the API as the service describes it: python scripts/write_openapi.py"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from viscoin.serving.app import create_app  # noqa: E402
from viscoin.serving.state import Settings  # noqa: E402

DOCUMENT = ROOT / "tests" / "golden" / "openapi.json"


def document() -> str:
    """The OpenAPI document of the service, sorted, one value a line."""
    return json.dumps(create_app(Settings()).openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
