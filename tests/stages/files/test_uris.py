"""What a person may type to name sources, and what is refused before anything is opened."""

from pathlib import Path

import pytest

from cache_schema.errors import UsageError
from stages.files.uris import parse_uri
from stages.sources import SOURCES, expand
from tests.corpora.pictures import jpeg
from tests.corpora.webdataset import write_tar


def names(uri: str, modality: str = "image") -> list[str]:
    return [Path(source.uri).name for source in expand(uri, modality)]  # type: ignore[arg-type]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    for number in (0, 1, 2, 10):
        write_tar(tmp_path / f"{number:03d}.tar", [("a.jpg", jpeg(8, 8))])
    return tmp_path


def test_braces_keep_their_order_and_their_zeros(tars: Path) -> None:
    assert names(f"{tars}/{{000..002}}.tar") == ["000.tar", "001.tar", "002.tar"]
    assert names(f"{tars}/{{010,001}}.tar") == ["010.tar", "001.tar"]
    assert names(f"{tars}/{{00,01}}{{0..0}}.tar") == ["000.tar", "010.tar"]


def test_globs_are_sorted_by_name(tars: Path) -> None:
    assert names(f"{tars}/*.tar") == ["000.tar", "001.tar", "002.tar", "010.tar"]
    assert names(f"{tars}/00?.tar") == ["000.tar", "001.tar", "002.tar"]
    (tars / "deep" / "deeper").mkdir(parents=True)
    write_tar(tars / "deep" / "deeper" / "x.tar", [("a.jpg", jpeg(8, 8))])
    assert names(f"{tars}/**/x.tar") == ["x.tar"]


def test_a_relative_path_is_resolved_at_once(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tars)
    (source,) = expand("000.tar", "image")
    monkeypatch.chdir("/")
    assert source.uri == str(tars / "000.tar") and source.scan().num_samples == 1


def test_a_kind_and_options_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_bytes("caf\xe9\n".encode("latin-1"))
    (source,) = expand(f"text:{tmp_path}/notes.md?encoding=latin-1", "text")
    assert (source.kind, source.options) == ("text", {"encoding": "latin-1"})
    assert next(iter(source.read(0, 1, 0))).payload == "caf\u00e9".encode()


def test_a_path_that_exists_is_taken_literally(tmp_path: Path) -> None:
    for name in ("a{1,2}.txt", "a[1].txt", "text:b?c=d.txt"):
        (tmp_path / name).write_text("hello\n")
        assert names(str(tmp_path / name), "text") == [name]


@pytest.mark.parametrize(
    "uri",
    [
        "pipe:cat /etc/passwd",
        "tar:pipe:cat /etc/passwd",
        "ftp://host/secret.tar",
        "file:///etc/passwd",
        "data:text/plain,secret",
        "gopher://host/secret",
        "HTTPS://host/secret.tar",
        "sftp://name:secret@host/x.tar",
    ],
)
def test_addresses_that_are_never_read_are_refused_without_showing_them(uri: str) -> None:
    with pytest.raises(UsageError, match="is not read") as caught:
        expand(uri, "image")
    assert "secret" not in str(caught.value) and "passwd" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "https://name:secret@host/x.tar",
        "tar:https://secret@host/x.tar",
        "https://host/x.tar?X-Amz-Signature=secret",
        "s3://bucket/x.tar?versionId=1&X-Amz-Credential=secret",
        "https://host/x.tar#secret",
        "https://host/{a,b}.tar?sig=secret&a=",
        "https://host/x.tar?token=secret",
        "https://name:secret@[host/x.tar",
        "s3:///x.tar",
    ],
)
def test_an_address_with_credentials_or_without_a_host_is_a_usage_error_that_does_not_show_them(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        expand(uri, "image")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[fe80::1]", "metadata.google.internal", "0xA9FEA9FE", "2852039166", "169.254.43518"]
)
def test_the_metadata_service_of_a_machine_is_never_a_source(host: str) -> None:
    with pytest.raises(UsageError, match="metadata"):
        expand(f"http://{host}/latest/x.tar", "image")


def test_an_address_expands_its_braces_and_is_not_asked_for_before_it_is_scanned() -> None:
    sources = expand("tar:https://host.invalid/{000..002}.tar", "image")
    assert [source.uri for source in sources] == [f"https://host.invalid/00{number}.tar" for number in range(3)]
    assert {source.kind for source in sources} == {"tar"}


def test_a_web_server_cannot_be_asked_what_it_holds() -> None:
    with pytest.raises(UsageError, match="braces"):
        expand("https://host.invalid/*.tar", "image")


def test_a_folder_of_images_is_read_from_a_local_disk_only() -> None:
    with pytest.raises(UsageError, match="pack it into tars"):
        expand("folder:https://host.invalid/pictures", "image")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("", "names nothing"),
        ("tar:", "no path"),
        ("tra:x.tar", "did you mean 'tar'"),
        ("{5..3}.tar", "count down"),
        ("{0..99999999}.tar", "split it"),
        ("missing-{0..3}.tar", "and 3 more of 4"),
        ("missing/*.tar", "no file matches"),
        ("missing.tar", "does not exist"),
        ("x.parquet?column=a&column=b", "given once"),
        ("x.parquet?column=", "NAME=VALUE"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error_that_says_why(
    uri: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        expand(uri, "image")
    assert words in str(caught.value)


def test_a_file_named_twice_is_a_usage_error(tars: Path) -> None:
    with pytest.raises(UsageError, match="twice"):
        expand(f"{tars}/{{000,000}}.tar", "image")


def test_a_kind_that_cannot_be_told_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "captions.xyz").write_text("a\n")
    with pytest.raises(UsageError, match="write the kind before it"):
        expand(str(tmp_path / "captions.xyz"), "text")


def test_a_source_of_the_other_modality_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no texts"):
        expand(str(tmp_path), "text")


def test_options_are_split_from_globs() -> None:
    parsed = parse_uri("parquet:part-?.parquet?column=caption&key_column=id", SOURCES)
    assert (parsed.kind, parsed.pattern) == ("parquet", "part-?.parquet")
    assert parsed.options == {"column": "caption", "key_column": "id"}
