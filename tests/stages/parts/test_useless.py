"""A source without one usable row is named with its commonest reason and an example, until it is mended or allowed."""

import json
from dataclasses import replace
from pathlib import Path

from stages.extract.job import open_job
from stages.parts.useless import UselessSource, useless_refused, useless_sources
from tests.corpora.command_line import invoke
from tests.corpora.extracts import extract_config, run_parts
from tests.corpora.pictures import encoded, noise
from tests.corpora.stub_teacher import STUB
from tests.corpora.webdataset import write_tar

PICTURE = encoded(noise(8, 8), "PNG")


def write_list(path: Path, names: list[str]) -> str:
    path.write_text("path\n" + "".join(f"{name}\n" for name in names))
    return f"{path}?path_column=path"


def test_the_useless_source_is_found_among_others_in_the_same_parts(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    (tmp_path / "b.png").write_bytes(b"no picture")
    good = write_list(tmp_path / "good.csv", ["a.png", "gone.png"])
    bad = write_list(tmp_path / "bad.csv", ["gone.png", "b.png", "gone.png"])
    config = replace(extract_config(tmp_path / "cache", part_rows=4), images=(good, bad))
    with open_job(config) as job:
        run_parts(job, only=1)
        job.finish()
        assert useless_sources(job) == []
    with open_job(config) as job:
        run_parts(job)
        job.finish()
        (found,) = useless_sources(job)
    assert (found.uri, found.num_rows, found.num_alike) == (str(tmp_path / "bad.csv"), 3, 2)
    assert (found.status, found.reason, found.key) == ("src-unreadable", "gone", "1")
    said = str(useless_refused([found]))
    assert "bad.csv (2 of 3 are src-unreadable: gone, such as '1')" in said
    assert "--retry-bad src-unreadable" in said and "--allow-useless-sources" in said


def test_an_extract_that_names_it_ends_with_4_until_it_is_mended_or_allowed(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").write_bytes(PICTURE)
    bad = write_list(tmp_path / "bad.csv", ["pics\\a.png"])
    good = str(write_tar(tmp_path / "good.tar", [("a.png", PICTURE)]))
    common = ("--cache", tmp_path / "cache", "--no-index", "--quiet", "--json")
    first = invoke("extract", "--images", bad, "--teacher", STUB, *common)
    assert first.exit_code == 4 and "bad.csv (1 of 1 are src-unreadable: gone" in first.stderr
    assert json.loads(first.stdout)["sources"]["useless"][0]["num_rows"] == 1
    assert invoke("extract", "--images", bad, *common).exit_code == 4
    assert invoke("extract", *common).exit_code == 4
    assert invoke("extract", *common, "--allow-useless-sources").exit_code == 0
    assert invoke("extract", "--images", good, *common).exit_code == 0
    assert invoke("extract", "--images", good, "--images", bad, *common).exit_code == 4
    # The advice of the message.
    (tmp_path / "pics\\a.png").write_bytes(PICTURE)
    mended = invoke("extract", *common, "--retry-bad", "src-unreadable")
    assert mended.exit_code == 0, mended.stderr
    assert invoke("extract", "--images", bad, *common).exit_code == 0


def test_what_is_no_sample_is_counted_and_said_and_kept_in_the_plan(tmp_path: Path) -> None:
    folder = tmp_path / "pics"
    folder.mkdir()
    (folder / "a.png").write_bytes(PICTURE)
    (folder / "notes.txt").write_text("")
    (folder / "without").write_text("")
    (tmp_path / "elsewhere").mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    common = ("--cache", tmp_path / "cache", "--no-index", "--quiet")
    for more in (("--teacher", STUB, "--images", folder), ("--images", folder), ()):
        said = invoke("extract", *common, *more)
        assert said.exit_code == 0, said.stderr
        (line,) = [line for line in said.stdout.splitlines() if line.startswith("no samples")]
        assert sorted(line.partition(": ")[2].split(", ")) == ["1 .txt", "1 linked folders", "1 no extension"]
    plan = json.loads((tmp_path / "cache" / "image" / "plan.json").read_text())
    assert plan["sources"][0]["ignored"] == {".txt": 1, "no extension": 1, "linked folders": 1}


def test_many_useless_sources_are_counted() -> None:
    found = [UselessSource("image", f"/{n}.csv", 1, "src-unreadable", "gone", 1, "1", True) for n in range(5)]
    assert "/2.csv" in str(useless_refused(found)) and "; and 2 more: mend it" in str(useless_refused(found))


def test_the_advice_for_a_file_that_is_mended_as_a_whole_works_too(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "bad.tar", [("a.json", b'{"text": NaN}'), ("b.json", b"{")])
    common = ("--cache", tmp_path / "cache", "--no-index", "--quiet", "--json")
    first = invoke("extract", "--texts", tar, "--teacher", STUB, *common)
    assert first.exit_code == 4 and "mend it and run again with --accept-new" in first.stderr
    write_tar(tar, [("a.json", b'{"text": "a sentence"}'), ("b.json", b'{"text": "another"}')])
    again = invoke("extract", "--texts", tar, *common, "--accept-new")
    assert again.exit_code == 0, again.stderr
    (array,) = json.loads(again.stdout)["arrays"].values()
    assert (array["ok"], array["bad"]) == (2, 2)
    assert invoke("extract", "--texts", tar, *common).exit_code == 0
