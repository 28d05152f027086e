"""The hub, asked once and briefly, before its own client asks it again and again."""

import contextlib
import importlib
from collections.abc import Iterator

SECONDS_TO_ANSWER = 10.0


@contextlib.contextmanager
def cached_only_unless_it_answers() -> Iterator[None]:
    """Inside, the hub's client looks into its cache alone when the hub does not answer within ten seconds.

    Left to itself, huggingface_hub 2.4 tries an unreachable hub for about a minute before it says so. Any answer is an
    answer: whether a repository exists is for the client to find out.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    from huggingface_hub import get_session

    session = get_session()
    # The client changed its HTTP library more than once.
    http = importlib.import_module(type(session).__module__.partition(".")[0])
    try:
        session.head(address, timeout=SECONDS_TO_ANSWER)
    except (http.HTTPError, http.InvalidURL, OSError):
        return False
    return True
