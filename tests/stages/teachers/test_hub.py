"""A hub that does not answer is asked once."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cache_schema.errors import EnvironmentProblem
from stages.teachers import load_teacher


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[int]]:
    """A hub that hangs up on everybody; yields the list of those who called."""
    server, callers = socket.create_server(("127.0.0.1", 0)), []

    def hang_up() -> None:
        while True:
            try:
                connection, (_, port) = server.accept()
            except OSError:
                return
            callers.append(port)
            connection.close()

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    threading.Thread(target=hang_up, daemon=True).start()
    yield callers
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def test_a_hub_that_hangs_up_is_asked_once_for_an_hf_teacher(questions: list[int], tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"cannot download nobody/nothing .*connect to the hub"):
        load_teacher("hf:nobody/nothing", base_folder=tmp_path)
    assert len(questions) == 1


def test_a_hub_that_hangs_up_is_asked_once_for_an_open_clip_tag(
    questions: list[int], publish: Callable[..., None]
) -> None:
    from huggingface_hub import constants

    publish("tiny-clip", "far", hf_hub="nobody/nothing/")
    with pytest.raises(EnvironmentProblem, match=r"cannot download the weights 'far' of tiny-clip"):
        load_teacher("open_clip:tiny-clip/far")
    assert len(questions) == 1
    assert not constants.HF_HUB_OFFLINE
