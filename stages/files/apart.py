"""What is written lies apart from what is read: an output inside an input would be read as one more input next time."""

from collections.abc import Iterable
from pathlib import Path

from cache_schema.errors import UsageError
from cache_schema.layout import Layout


def require_outside_caches(path: Path, flag: str) -> None:
    """Raises `UsageError` when `path`, the value of `flag`, lies inside a cache. Links are followed."""
    for folder in path.resolve().parents:
        if Layout(folder).cache_json.exists():
            raise UsageError(
                f"{flag} {path} lies inside the cache {folder}, whose files are its own: name a folder outside it"
            )


def require_outside_sources(path: Path, flag: str, uris: Iterable[str]) -> None:
    """Raises `UsageError` when `path`, the value of `flag`, lies inside a folder of `uris`, or is one."""
    place = path.resolve()
    for uri in uris:
        folder = Path(uri)
        if folder.is_dir() and place.is_relative_to(folder.resolve()):
            raise UsageError(
                f"{flag} {path} lies inside {uri}, which is read: what is written there would be read as well; name a "
                "folder outside it"
            )
