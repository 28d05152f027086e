"""A hub of one repository on loopback, as far as its client asks it to download: what is there, and the files."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.corpora.web_server import web_server

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_of(folder: Path, name: str, root: Path) -> Iterator[str]:
    """Yields the address of a hub on which the files of `folder` are the repository `name`; `root` is for its pages."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    pages: dict[str, bytes] = {
        f"/api/models/{name}/revision/main": json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode(),
        f"/api/models/{name}/tree/{COMMIT}": json.dumps(
            [{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _oid(path)} for path in paths]
        ).encode(),
    }
    pages |= {f"/{name}/resolve/{COMMIT}/{path.name}": path.read_bytes() for path in paths}
    for page, data in pages.items():
        (root / page.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (root / page.lstrip("/")).write_bytes(data)
    with web_server(root, {"X-Repo-Commit": COMMIT}) as server:
        yield server.address


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
