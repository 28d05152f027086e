"""The demo's report as one web page: no scripts, no requests, everything inside.

Its frame stands in report.html beside this file, the style in `pipeline/pages`; this fills them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pipeline.demo.classes import CLASS_NAMES
from pipeline.demo.gallery import Answer, Shown
from pipeline.pages.chart import Line, legend, line_chart
from pipeline.pages.template import fill_template


@dataclass(frozen=True)
class Curve:
    """Training of one student: (step, value) points of its loss and of its cosine to the teacher."""

    name: str
    loss: tuple[tuple[float, float], ...]
    cosine: tuple[tuple[float, float], ...]


def page(
    report: dict[str, Any], *, curves: Sequence[Curve], gallery: Sequence[Shown], best: str, commands: Sequence[str]
) -> str:
    """Returns the page.

    Args:
        report: what report.json says.
        curves: one per student, in the report's order.
        gallery: pictures with the answers of the teacher and of the student `best`.
        best: name of the student in the gallery.
        commands: what was run, as one would type it.
    """
    teacher, students = report["teacher"], report["students"]
    leader = max(students, key=lambda student: student["zero_shot_top1"])
    return fill_template(
        "pipeline.demo",
        "report.html",
        images=f"{report['images']:,}",
        sentences=f"{report['sentences']:,}",
        held_out=f"{report['held_out']:,}",
        num_students=f"{len(students)}",
        minutes=f"{report['seconds']['total'] / 60:.1f}",
        best=escape(best),
        best_share=f"{100 * leader['share_of_teacher']:.0f}",
        best_parameters=f"{leader['num_parameters'] / 1e6:.1f}",
        teacher_top1=_percent(teacher["zero_shot_top1"]),
        cross_fitted=_percent(teacher["cross_fitted_top1"]),
        fitted_on=f"{teacher['fitted_on']:,}",
        rows="\n".join(_table_rows(report)),
        loss_chart=line_chart("Loss", [Line(c.name, c.loss, place) for place, c in enumerate(curves)]),
        cosine_chart=line_chart(
            "Cosine to the teacher, on training crops",
            [Line(c.name, c.cosine, place) for place, c in enumerate(curves)],
        ),
        legend=legend([curve.name for curve in curves]),
        gallery="\n".join(_card(shown, best) for shown in gallery),
        timings=_timings(report["seconds"]),
        commands=escape("\n".join(commands)),
    )


def _table_rows(report: dict[str, Any]) -> list[str]:
    teacher = report["teacher"]
    rows = [
        _row("the composed teacher", "never trained here, only asked once", teacher, "teacher"),
        *(
            _row(student["name"], _about(student), student, f"c{place}")
            for place, student in enumerate(report["students"])
        ),
        _row("always the largest group", "", {"zero_shot_top1": report["largest_class"]}, "none"),
        _row("chance", "", {"zero_shot_top1": report["chance"]}, "none"),
    ]
    return rows


def _about(student: dict[str, Any]) -> str:
    begun = f", from {student['started_from']}" if student["started_from"] else ""
    return (
        f"{student['student']} · {student['num_parameters'] / 1e6:.1f} M parameters · {student['steps']:,} steps{begun}"
    )


def _row(name: str, about: str, measured: dict[str, Any], colour: str) -> str:
    top1 = measured["zero_shot_top1"]
    numbers = [measured.get(key) for key in ("mean_per_class_recall", "agreement_top1")]
    cosine = measured.get("mean_cosine")
    return (
        f'<tr><th scope="row">{escape(name)}<small>{escape(about)}</small></th>'
        f'<td class="bar"><i class="{colour}" style="width:{100 * top1:.1f}%"></i><b>{_percent(top1)}</b></td>'
        + "".join(f"<td>{_percent(number) if number is not None else '–'}</td>" for number in numbers)
        + f"<td>{f'{cosine:.2f}' if cosine is not None else '–'}</td></tr>"
    )


def _card(shown: Shown, student: str) -> str:
    group = list(CLASS_NAMES)[shown.label]
    teacher_answer, student_answer = shown.answers
    return (
        f'<article><img src="{shown.picture}" alt="a held-out picture of {escape(group)}" width="112" height="112">'
        f"<h3>{escape(group)}</h3>"
        f"{_answer('teacher', teacher_answer, shown.label)}{_answer(student, student_answer, shown.label)}</article>"
    )


def _answer(who: str, answer: Answer, label: int) -> str:
    right = answer.label == label
    said = list(CLASS_NAMES)[answer.label]
    mark = '<em class="yes">✓</em>' if right else f'<em class="no">✗ {escape(said)}</em>'
    return f"<p><span>{escape(who)} {mark}</span>“{escape(answer.sentence)}” <small>{answer.cosine:.2f}</small></p>"


def _timings(seconds: dict[str, float]) -> str:
    steps = {name: value for name, value in seconds.items() if name != "total"}
    longest = max(steps.values()) or 1.0
    return "".join(
        f'<li><span>{escape(name)}</span><i style="width:{60 * value / longest:.1f}%"></i><b>{value:,.0f} s</b></li>'
        for name, value in steps.items()
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
