"""Sources behind an address: the same samples as from the local disk, and every failure of a server in three parts."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema.errors import EnvironmentProblem, MismatchError, PipelineError, RefusedError
from cache_schema.verify import verify_cache
from stages.files import remote
from stages.sources import expand
from tests.corpora.extracts import digests, extract, extract_config
from tests.corpora.pictures import jpeg
from tests.corpora.samples import samples_of
from tests.corpora.web_server import WebServer, web_server
from tests.corpora.webdataset import write_tar

pytest.importorskip("aiohttp")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    with web_server(tmp_path) as running:
        yield running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_WAITS_SECONDS", (0.0, 0.0, 0.0))


def write_sources(folder: Path) -> dict[str, str]:
    """Writes one file of every kind that can be remote; returns name -> modality."""
    write_tar(folder / "pictures.tar", [(f"{i}.jpg", jpeg(8 + i, 8)) for i in range(5)])
    (folder / "lines.txt").write_text("".join(f"sentence {i}\n" for i in range(5)))
    table = pa.table({"text": [f"sentence {i}" for i in range(5)], "id": list("abcde")})
    pq.write_table(table, folder / "table.parquet")
    return {"pictures.tar": "image", "lines.txt": "text", "table.parquet": "text"}


def test_a_remote_source_gives_the_same_samples_as_the_local_file(server: WebServer) -> None:
    for name, modality in write_sources(server.root).items():
        (near,) = expand(str(server.root / name), modality)  # type: ignore[arg-type]
        (far,) = expand(f"{server.address}/{name}", modality)  # type: ignore[arg-type]
        here, there = near.scan(), far.scan()
        assert here.fingerprint == there.fingerprint
        np.testing.assert_array_equal(here.offsets, there.offsets)
        assert samples_of(near) == samples_of(far)


def test_extract_from_a_web_server_gives_the_digest_of_the_local_extract(server: WebServer, tmp_path: Path) -> None:
    write_sources(server.root)

    def extracted(where: str, cache: Path) -> dict[str, str]:
        sources = {"images": (f"{where}/pictures.tar",), "texts": (f"{where}/lines.txt",)}
        return digests(extract(replace(extract_config(cache, part_rows=4, batch_size=4), **sources)))

    near = extracted(str(server.root), tmp_path / "near")
    assert extracted(server.address, tmp_path / "far") == near
    assert verify_cache(tmp_path / "far") == []
    server.requests.clear()
    assert extracted(server.address, tmp_path / "far") == near
    assert {method for method, _ in server.requests} == {"HEAD"}, "a finished extract asks only whether files changed"


@pytest.mark.parametrize("fault", ["status 503", "status 429", "status 500", "reset"])
@pytest.mark.usefixtures("impatient")
def test_a_failure_that_passes_is_tried_again(server: WebServer, fault: str) -> None:
    write_sources(server.root)
    server.faults["/lines.txt"] = [fault, fault]
    (source,) = expand(f"{server.address}/lines.txt", "text")
    assert source.scan().num_samples == 5


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("status 404!", MismatchError, "is not there"),
        ("status 403!", EnvironmentProblem, "credentials"),
        ("status 401!", EnvironmentProblem, "credentials"),
        ("status 503!", EnvironmentProblem, "status 503, 4 attempts"),
        ("reset!", EnvironmentProblem, "4 attempts"),
        ("to ftp://elsewhere/secret!", RefusedError, "redirects to ftp:"),
        ("to file:///etc/passwd!", RefusedError, "redirects"),
        ("to http://169.254.169.254/secret!", RefusedError, "private network"),
        ("to http://localhost/secret!", RefusedError, "private network"),
        ("to http://10.0.0.1/secret!", RefusedError, "private network"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_failure_that_stays_is_one_error_that_names_the_file(
    server: WebServer, fault: str, kind: type[PipelineError], words: str
) -> None:
    write_sources(server.root)
    server.faults["/lines.txt"] = [fault]
    (source,) = expand(f"{server.address}/lines.txt", "text")
    with pytest.raises(kind, match=words) as caught:
        source.scan()
    assert f"{server.address}/lines.txt" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_redirect_on_the_same_server_is_followed(server: WebServer) -> None:
    write_sources(server.root)
    server.faults["/moved.txt"] = ["to /lines.txt!"]
    (source,) = expand(f"{server.address}/moved.txt", "text")
    assert source.scan().num_samples == 5


def test_redirects_without_end_are_an_error(server: WebServer, impatient: None) -> None:
    server.faults["/round.txt"] = ["to /round.txt!"]
    (source,) = expand(f"{server.address}/round.txt", "text")
    with pytest.raises(PipelineError, match=r"round\.txt"):
        source.scan()


def test_a_server_without_ranges_is_refused_when_they_are_needed(server: WebServer, impatient: None) -> None:
    write_sources(server.root)
    server.faults["/table.parquet"] = ["no ranges!"]
    (source,) = expand(f"{server.address}/table.parquet", "text")
    with pytest.raises(RefusedError, match="parts of a file"):
        source.scan()


def test_a_server_that_is_not_there_is_an_environment_problem(impatient: None) -> None:
    (source,) = expand("http://127.0.0.1:9/lines.txt", "text")
    with pytest.raises(EnvironmentProblem, match="cannot be read"):
        source.scan()


def test_a_file_that_changes_after_planning_is_named(server: WebServer) -> None:
    write_sources(server.root)
    (source,) = expand(f"{server.address}/pictures.tar", "image")
    scan = source.scan()
    write_tar(server.root / "pictures.tar", [("0.jpg", jpeg(8, 8))])
    with pytest.raises(RefusedError, match=r"pictures\.tar"):
        list(source.read(2, 1, scan.offset_bytes(2)))
