"""Nothing in a cache or source is executed, nothing listens or connects, no secret and no file leaves its place."""

import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from tests.corpora.command_line import extract_of
from tests.corpora.pictures import jpeg
from tests.corpora.processes import ROOT, environment, result_of, run, start
from tests.corpora.small_corpus import write_least_sources
from tests.corpora.stub_teacher import STUB, stub
from tests.corpora.traps import booby_traps
from tests.corpora.webdataset import write_tar
from tests.faults.damage import kind_of

SECRETS = {
    **{name: f"canary-{name.lower()}" for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")},
    **{name: f"canary-{name.lower()}" for name in ("GOOGLE_API_KEY", "MY_PASSWORD", "AZURE_STORAGE_KEY")},
}
# Whoever adds a kind of address adds a line.
ADDRESSES = [
    "https://user:canary-userinfo@127.0.0.1:1/a.tar",
    "https://127.0.0.1:1/a.tar?X-Amz-Signature=canary-query&token=canary-token",
    "http://169.254.169.254/latest/canary-metadata.tar?sig=canary-query",
    "s3://canary-userinfo:canary-password@bucket/a.tar",
    "gs://user:canary-password@bucket/{000..003}.tar",
    "ftp://user:canary-password@host/a.tar",
    "pipe:cat canary-command > canary-file",
    "tar:pipe:cat canary-command",
    "file:///etc/canary-path",
    "tar:https://user:canary-userinfo@127.0.0.1:1/a.tar",
    "https://user:canary-userinfo@[::1]:1/a.tar#canary-fragment",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_least_sources(tmp_path_factory.mktemp("security") / "corpus")


@pytest.fixture(scope="module")
def good(corpus: Path) -> Path:
    """A finished cache with all that a cache can have."""
    cache = corpus / "good"
    result_of(*extract_of(corpus, cache))
    result_of("mine", "--cache", str(cache), "--from", "image", "--to", "text", "--k", "2", "--name", "near")
    result_of("dedup", "--cache", str(cache), "--modality", "text", "--exact", "--name", "unique")
    return cache


@pytest.mark.slow
def test_a_pickle_in_the_place_of_any_file_is_never_loaded(good: Path, corpus: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for trap in booby_traps(marker):
        with pytest.raises(FileExistsError):  # the traps themselves work
            marker.mkdir(exist_ok=True)
            list(np.load(io.BytesIO(trap), allow_pickle=True).values()) if trap[:2] == b"PK" else pickle_or_npy(trap)
    marker.rmdir()
    paths: dict[str, Path] = {}
    for path in sorted(good.rglob("*")):
        kind = kind_of(path.relative_to(good)) if path.is_file() else None
        if kind:
            paths.setdefault(kind, path.relative_to(good))
    assert len(paths) == 18
    commands: list[str] = []
    for kind, path in paths.items():
        for number, trap in enumerate(booby_traps(marker)):
            cache = shutil.copytree(good, tmp_path / f"{kind.replace(' ', '-')}-{number}")
            (cache / path).write_bytes(trap)
            for command in (["inspect", str(cache), "--bad"], ["verify", str(cache)], extract_of(corpus, cache)):
                commands += [*command, "--"]
    done, log = run_trapped(tmp_path, *commands[:-1])
    assert "Traceback" not in done.stderr and not marker.exists()
    assert [line for line in log if line.startswith("pickle.find_class")] == []


def pickle_or_npy(data: bytes) -> None:
    if data[:1] == b"\x93":
        np.load(io.BytesIO(data), allow_pickle=True)
    else:
        pickle.loads(data)  # noqa: S301 - our own trap


def run_trapped(folder: Path, *args: str, **env: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs command lines, parted by `--`, under the audit hook; returns what they said and what was noted."""
    log = folder / "events"
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.trapped", str(log), *args],
        cwd=ROOT,
        env=environment(**env),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done, log.read_text().splitlines()


def test_pickles_among_the_members_of_a_tar_are_never_loaded(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    traps = list(booby_traps(marker))
    names = ("pkl", "pickle", "pyd", "npy", "npz", "pt", "pth", "json", "cls", "txt", "jpg", "png")
    members = [(f"{i:03d}-{t}.{name}", trap) for i, name in enumerate(names) for t, trap in enumerate(traps)]
    write_tar(tmp_path / "a.tar", [*members, ("good.jpg", jpeg(20, 20))])
    args = ["extract", "--cache", str(tmp_path / "cache"), "--teacher", STUB, "--images", str(tmp_path / "a.tar")]
    _, log = run_trapped(tmp_path, *args, "--no-index", "--quiet", "--", "verify", str(tmp_path / "cache"))
    assert log == [] and not marker.exists()
    bad = result_of("inspect", str(tmp_path / "cache"), "--bad")["bad_rows"]
    assert {row["status"] for row in bad} == {"src-no-image", "img-unknown-format"}


def test_a_serial_extract_binds_connects_and_resolves_nothing_and_no_process_of_it_listens(
    corpus: Path, tmp_path: Path
) -> None:
    assert run_trapped(tmp_path, *extract_of(corpus, tmp_path / "cache", "--decode-workers", "2"))[1] == []
    slow = stub(seconds_per_batch=0.4)
    process = start(*extract_of(corpus, tmp_path / "slow", "--decode-workers", "2", "--no-index", teacher=slow))
    seen: set[int] = set()
    while process.poll() is None:
        pids = descendants(process.pid)
        seen |= pids
        assert not listening(pids)
        time.sleep(0.05)
    assert process.returncode == 0 and len(seen) >= 2


def descendants(pid: int) -> set[int]:
    found = {pid}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == pid:  # the session that the program leads
            found.add(int(status.parent.name))
    return found


def listening(pids: set[int]) -> set[str]:
    """Returns the inodes of the TCP sockets on which these processes listen, and of their bound UDP sockets."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    open_ones = set()
    for table, states in (("tcp", {"0A"}), ("tcp6", {"0A"}), ("udp", {"07"}), ("udp6", {"07"})):
        path = Path(f"/proc/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] in states:
                open_ones.add(fields[9])
    return inodes & open_ones


@pytest.mark.slow
def test_no_secret_is_stored_or_printed_whether_a_run_succeeds_or_fails(corpus: Path, tmp_path: Path) -> None:
    said = []
    for debug in ([], ["--debug"]):
        done = run(*extract_of(corpus, tmp_path / "cache", "--no-index", *debug), **SECRETS)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout + done.stderr)
    commands: list[str] = []
    for number, address in enumerate(ADDRESSES):
        flag = ("--images", "--texts")[number % 2]
        commands += ["extract", "--cache", str(tmp_path / "new"), "--teacher", STUB, flag, address, "--debug", "--"]
    done, events = run_trapped(tmp_path, *commands[:-1], **SECRETS)
    codes = [line[:6] for line in done.stdout.splitlines() if line.startswith("exit ")]
    assert len(codes) == len(ADDRESSES) and set(codes) <= {"exit 1", "exit 2"}
    asked = [event for event in events if event.startswith("socket.")]
    assert [event for event in asked if "127.0.0.1" not in event and "::1" not in event] == []
    said.append(done.stderr)
    for command in (["inspect", str(tmp_path / "cache")], ["verify", str(tmp_path / "cache")]):
        said.append(run(*command, "--debug", **SECRETS).stdout)
    # The path of a file is no secret; what follows it and what stands before the host is.
    told = [word for text in said for word in text.split() if "canary" in word and "canary-path" not in word]
    assert [word for word in told if "canary-command" not in word and "canary-metadata" not in word] == []
    assert not (ROOT / "canary-file").exists() and not (tmp_path / "new").exists()
    stored = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and path.name != "events" and b"canary" in path.read_bytes()
    ]
    assert stored == []


HOSTILE = [
    "../../escape",
    "/abs/escape",
    "..",
    "a/../../escape",
    "NUL",
    "con",
    "é" * 100,
    "n" * 254,
    "a\nb",
    "-rf",
    "~",
]


def test_no_name_in_a_tar_or_folder_leads_out_of_the_cache(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tar_path = tmp_path / "in" / "a.tar"
    with tarfile.open(tar_path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, name in enumerate(HOSTILE):
            payload = jpeg(20, 20, number)
            info = tarfile.TarInfo(f"{name}{number}.jpg")
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    pictures = tmp_path / "in" / "pictures"
    pictures.mkdir()
    for number, name in enumerate(HOSTILE):
        with_slashes = name.replace("/", "%2f")[:245]
        (pictures / f"{with_slashes}{number}.jpg").write_bytes(jpeg(20, 20, number))
    os.symlink("/etc/passwd", pictures / "passwd.jpg")
    before = set(tmp_path.rglob("*"))
    args = ["--images", str(tar_path), "--images", str(pictures), "--no-index"]
    result = result_of("extract", "--cache", str(tmp_path / "cache"), "--teacher", STUB, *args)
    (array,) = result["arrays"].values()
    # A leading dot hides a file of a folder, and begins a member that belongs to no sample.
    assert array["ok"] > 1.5 * len(HOSTILE)
    outside = {path for path in tmp_path.rglob("*") if tmp_path / "cache" not in (path, *path.parents)}
    assert outside == before


@pytest.mark.parametrize("name", ["../up", "/abs", "..", "a/b", "a\\b", "", "NUL\x00", "x" * 300, "Upper", "a..b"])
def test_no_name_of_neighbours_or_selections_leads_out_of_the_cache(good: Path, name: str, tmp_path: Path) -> None:
    from cache_schema.errors import UsageError
    from cache_schema.layout import check_name
    from pipeline.cli import run as run_here

    with pytest.raises(UsageError):
        check_name(name, "selection")
    if "\x00" not in name:
        cache = str(shutil.copytree(good, tmp_path / "cache"))
        before = set(tmp_path.rglob("*"))
        assert run_here(["dedup", "--cache", cache, "--modality", "text", "--exact", "--name", name]) == 2
        assert run_here(["mine", "--cache", cache, "--from", "image", "--to", "text", "--k", "2", "--name", name]) == 2
        assert set(tmp_path.rglob("*")) == before
