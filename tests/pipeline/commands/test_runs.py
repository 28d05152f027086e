"""`pipeline runs` compares runs in a table, as JSON and on a page; a damaged one hides no other."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from cache_schema.json_file import read_sealed
from tests.corpora.command_line import only_error
from tests.corpora.folders import contents_of
from tests.corpora.golden import RUN as GOLDEN
from tests.corpora.markup import Balance
from tests.corpora.resealed import reseal

Invoke = Callable[..., Result]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a finished and a stopped run, with another learning rate and a measurement of held-out pictures."""
    for name in ("finished", "stopped"):
        shutil.copytree(GOLDEN / name, tmp_path / "runs" / name)
    run_json = tmp_path / "runs" / "stopped" / "run.json"
    value = read_sealed(run_json)
    amendment = {"step": 1, "reason": "it <diverged>", "changes": {"steps": 8}}
    about = {**value["about"], "amendments": [amendment]}
    reseal(run_json, asked={**value["asked"], "learning_rate": 0.002}, about=about)
    line = {"step": 2, "loss": 1.0, "cosine": 0.5, "agreement": 0.625, "zero_shot_top1": 0.375}
    (tmp_path / "runs" / "stopped" / "held_out.jsonl").write_text(json.dumps(line) + "\n")
    return tmp_path / "runs"


def cells(line: str) -> list[str]:
    return re.split(r"  +", line.strip())


def test_the_table_has_a_line_per_run_and_below_it_in_what_they_differ(invoke: Invoke, runs: Path) -> None:
    before = contents_of(runs)
    result = invoke("runs", runs)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    shown = [dict(zip(cells(lines[0]), cells(line), strict=True)) for line in lines[1:3]]
    assert [(row["run"], row["steps"], row["state"], row["amended"]) for row in shown] == [
        ("finished", "4 of 4", "ended", "-"),
        ("stopped", "2 of 8", "stopped", "1"),
    ]
    assert [row["loss"] for row in shown] == ["7.177", "6.18"]
    assert (shown[1]["agreement"], shown[1]["zero-shot"]) == ("0.625", "0.375")
    assert [cells(line) for line in lines[4:7]] == [
        ["asked", "value", "runs"],
        ["learning_rate", "0.0008", "finished"],
        ["0.002", "stopped"],
    ]
    assert lines[-1] == f"next: pipeline evaluate {runs / 'finished'} --data DIR"
    assert contents_of(runs) == before


def test_json_has_the_same_for_programs(invoke: Invoke, runs: Path) -> None:
    result = invoke("runs", runs / "stopped", runs, "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert [run["name"] for run in said["runs"]] == ["stopped", "finished"]
    stopped = said["runs"][0]
    assert stopped["run"] == str(runs / "stopped") and stopped["held_out_agreement"] == 0.625
    assert (stopped["steps_done"], stopped["steps"], stopped["amendments"][0]["changes"]) == (2, 8, {"steps": 8})
    assert said["differences"] == [{"field": "learning_rate", "values": {"stopped": 0.002, "finished": 0.0008}}]


def test_a_damaged_run_and_one_of_a_newer_format_have_their_line_and_the_command_ends_with_4(
    invoke: Invoke, runs: Path, tmp_path: Path
) -> None:
    for name in ("newer", "torn"):
        shutil.copytree(GOLDEN / "finished", runs / name)
    reseal(runs / "newer" / "run.json", format=99)
    (runs / "torn" / "run.json").write_bytes((runs / "torn" / "run.json").read_bytes()[:-100])
    page = tmp_path / "page.html"
    result = invoke("runs", runs, "--page", page)
    assert result.exit_code == 4
    lines = result.stdout.splitlines()
    assert [cells(line)[0] for line in lines[1:5]] == ["finished", "newer", "stopped", "torn"]
    assert any(line.startswith("newer: ") and "run format 99" in line for line in lines)
    assert any(line.startswith("torn: ") and "run.json is damaged" in line for line in lines)
    assert "error: 2 of 4 runs cannot be read (newer, torn): do what stands beside each" in result.stderr
    assert "run format 99" in page.read_text() and "7.177" in page.read_text()
    as_json = invoke("runs", runs, "--json")
    assert as_json.exit_code == 4 and len(json.loads(as_json.stdout)["runs"]) == 4


def test_a_log_that_is_broken_before_its_end_is_damage_on_the_page_and_in_the_table_beside_it(
    invoke: Invoke, runs: Path, tmp_path: Path
) -> None:
    metrics = runs / "finished" / "metrics.jsonl"
    line = metrics.read_text().splitlines()[-1]
    metrics.write_text("no json\n" + f"{line}\n" * 1000)
    assert invoke("runs", runs).exit_code == 0, "the end of the log is whole"
    result = invoke("runs", runs, "--page", tmp_path / "page.html")
    assert result.exit_code == 4 and "finished: " in result.stdout and "metrics.jsonl is damaged" in result.stdout


def test_the_page_is_one_well_formed_file_without_network_or_scripts_and_no_name_is_markup(
    invoke: Invoke, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "stopped", runs / "<script>alert(1)<&")
    page = tmp_path / "page.html"
    result = invoke("runs", runs, "--page", page)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"next: open {page}"
    html = page.read_text()
    parsed = Balance()
    parsed.feed(html)
    assert parsed.open == [] and parsed.addresses == []
    assert not re.search(r"@import|url\(|https?:|<script|<link|\$\w", html)
    for words in ("<script>alert(1)<&", "it <diverged>", "3 runs side by side", "2 of 8", "learning_rate", "0.002"):
        assert words in parsed.text
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert [title.partition(" ")[0] for title in titles] == ["Loss", "Cosine", "Learning", "Agreement"]
    assert html.count("<polyline") == 3 * 3 + 3 and html.count("<circle") == 2


def test_curves_of_runs_of_other_lengths_are_means_of_as_many_steps(invoke: Invoke, runs: Path, tmp_path: Path) -> None:
    for name, num_steps in (("finished", 2000), ("stopped", 500)):
        lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, num_steps + 1)]
        (runs / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = tmp_path / "page.html"
    assert invoke("runs", runs, "--page", page).exit_code == 0
    points = re.findall(r'<polyline class="c\d" points="([^"]*)"><title>', page.read_text())
    assert [len(line.split()) for line in points] == [200, 50]


def test_runs_without_a_held_out_part_have_no_chart_of_it(invoke: Invoke, runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert invoke("runs", runs / "finished", "--page", page).exit_code == 0
    assert "Learning rate" in page.read_text() and "Agreement" not in page.read_text()
    assert "nothing to compare it with" in page.read_text()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (
            "runs/stopped/page.html",
            "lies inside the run F/runs/stopped, whose files are its own: name a place outside it",
        ),
        ("runs", "is a folder: name a file such as runs.html"),
        ("runs/finished/run.json", "is no .html: name a file such as runs.html"),
    ],
)
def test_a_page_never_lies_where_the_files_of_a_run_are(
    invoke: Invoke, runs: Path, tmp_path: Path, place: str, words: str
) -> None:
    before = contents_of(runs)
    result = invoke("runs", runs, "--page", tmp_path / place)
    assert result.exit_code == 2
    assert words.replace("F/", f"{tmp_path}/") in only_error(result)
    assert contents_of(runs) == before


@pytest.mark.parametrize("args", [[], ["empty"], ["missing"]])
def test_no_run_at_all_is_a_usage_error(invoke: Invoke, tmp_path: Path, args: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    result = invoke("runs", *(tmp_path / arg for arg in args))
    assert result.exit_code == 2
    assert only_error(result).startswith("error: DIR" if not args else f"error: {tmp_path / args[0]} ")
