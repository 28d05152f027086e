"""The demo's web page."""

import re
from typing import Any

import pytest

from pipeline.demo.gallery import Answer, Shown
from pipeline.demo.page import Curve, page
from tests.corpora.markup import Balance

HOSTILE = "<script>alert('&')</script>"


@pytest.fixture
def shown() -> str:
    student: dict[str, Any] = {
        "name": "small <one>",
        "student": "timm:x?image_size=64",
        "started_from": None,
        "num_parameters": 1_400_000,
        "steps": 600,
        "zero_shot_top1": 0.6,
        "mean_per_class_recall": 0.55,
        "agreement_top1": 0.65,
        "mean_cosine": 0.4,
        "share_of_teacher": 0.75,
    }
    teacher = {"zero_shot_top1": 0.8, "mean_per_class_recall": 0.75, "cross_fitted_top1": 0.62, "fitted_on": 1_898}
    report = {
        "images": 1_517,
        "sentences": 20_000,
        "held_out": 381,
        "seconds": {"data": 40.0, "extract": 80.0, "total": 120.0},
        "chance": 1 / 9,
        "largest_class": 0.2,
        "teacher": teacher,
        "students": [student],
    }
    answers = (Answer(2, "a flag", 0.5), Answer(1, HOSTILE, 0.25))
    return page(
        report,
        curves=[Curve("small <one>", loss=((1, 5.0), (600, 3.0)), cosine=((1, 0.0), (600, 0.4)))],
        gallery=[Shown("data:image/jpeg;base64,AAAA", 2, answers)],
        best="small <one>",
        commands=["pipeline extract --images 'a && b'"],
    )


def test_the_page_is_well_formed_and_asks_nothing_of_the_network(shown: str) -> None:
    parsed = Balance()
    parsed.feed(shown)

    assert parsed.open == []
    assert all(address.startswith("data:") for address in parsed.addresses)
    assert not re.search(r"@import|url\(|https?:|<script|<link", shown)


def test_names_and_sentences_cannot_inject_markup(shown: str) -> None:
    parsed = Balance()
    parsed.feed(shown)

    assert HOSTILE not in shown
    assert HOSTILE in parsed.text
    assert "pipeline extract --images 'a && b'" in parsed.text


def test_the_page_gives_the_numbers_and_says_how_the_teacher_was_fitted(shown: str) -> None:
    for words in ("1,517", "20,000", "80.0 %", "60.0 %", "62.0 %", "all 1,898 pictures", "CC BY-SA 4.0", "OpenMoji"):
        assert words in shown
