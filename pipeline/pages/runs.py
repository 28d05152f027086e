"""The page of `pipeline runs`: runs side by side in a table, in curves, and in what they were asked.

Its frame stands in runs.html beside this file; this fills it.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pipeline.pages.chart import Line, legend, line_chart
from pipeline.pages.template import fill_template

# Of a curve: its title, and how its values are written.
CHARTS = {
    "loss": ("Loss", ".3g"),
    "cosine": ("Cosine to the teacher, on training crops", ".2f"),
    "learning_rate": ("Learning rate", ".1e"),
    "held_out_agreement": ("Agreement with the teacher, on held-out pictures", ".2f"),
}
_WORDS = ("run", "student", "state")


def runs_page(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    differences: Mapping[str, Sequence[Any]],
    amendments: Sequence[Mapping[str, Any]],
) -> str:
    """Returns the page.

    Args:
        rows: of the table, one per run, with its name as `run`, and a `problem` where it cannot be read.
        columns: keys of `rows`, and what stands above them.
        curves: name of a run that can be read -> name of a curve of `CHARTS` -> points.
        differences: field -> its value in each of these runs, in the same order.
        amendments: each with `run`, `step`, `reason` and `changes`.
    """
    num_unread = sum(row["problem"] is not None for row in rows)
    counted = "1 run" if len(rows) == 1 else f"{len(rows):,} runs"
    return fill_template(
        "pipeline.pages",
        "runs.html",
        title=f"{counted} side by side",
        lead=_lead(rows, num_unread),
        columns="".join(f"<th{_class(key)}>{escape(words)}</th>" for key, words in columns.items()),
        rows="\n".join(_row(row, list(columns)) for row in rows),
        charts="".join(_chart(name, curves) for name in CHARTS) or "<p>No step was logged yet.</p>",
        legend=legend(list(curves)),
        differences=_differences(differences, list(curves)),
        amendments=_amendments(amendments),
    )


def _lead(rows: Sequence[Mapping[str, Any]], num_unread: int) -> str:
    states = dict.fromkeys(str(row["state"]) for row in rows)
    counts = ", ".join(f"<b>{sum(row['state'] == state for row in rows):,}</b> {escape(state)}" for state in states)
    return f"{counts}. Those that cannot be read are left out below the table." if num_unread else f"{counts}."


def _row(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    head = f'<tr><th scope="row">{escape(str(row["run"]))}</th>'
    if row["problem"] is not None:
        said = f"{escape(str(row['state']))}: {escape(str(row['problem']))}"
        return f'{head}<td class="words problem" colspan="{len(columns) - 1}">{said}</td></tr>'
    return head + "".join(f"<td{_class(key)}>{_cell(row.get(key))}</td>" for key in columns if key != "run") + "</tr>"


def _chart(name: str, curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> str:
    title, number = CHARTS[name]
    lines = [Line(run, of_run[name], place) for place, (run, of_run) in enumerate(curves.items())]
    return line_chart(title, lines, number=number)


def _differences(differences: Mapping[str, Sequence[Any]], names: Sequence[str]) -> str:
    if not differences:
        return f"<p>{'They were asked the same.' if len(names) > 1 else 'There is nothing to compare it with.'}</p>"
    heads = "".join(f'<th class="words">{escape(name)}</th>' for name in names)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(field)}</th>'
        + "".join(f'<td class="words">{_cell(value)}</td>' for value in values)
        + "</tr>"
        for field, values in differences.items()
    )
    head = f"<thead><tr><th>asked</th>{heads}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>\n{rows}\n</tbody></table></div>'


def _amendments(amendments: Sequence[Mapping[str, Any]]) -> str:
    if not amendments:
        return ""
    items = "".join(
        f'<tr><th scope="row">{escape(str(each["run"]))}</th><td>{each["step"]:,}</td>'
        f'<td class="words">{escape(str(each["reason"]))}</td><td class="words">{_cell(each["changes"])}</td></tr>'
        for each in amendments
    )
    return (
        "\n<section>\n  <h2>What was changed on the way</h2>\n  "
        '<div class="scroll"><table><thead><tr><th></th><th>after step</th><th class="words">reason</th>'
        f'<th class="words">changes</th></tr></thead><tbody>{items}</tbody></table></div>\n</section>'
    )


def _class(key: str) -> str:
    return ' class="words"' if key in _WORDS else ""


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
