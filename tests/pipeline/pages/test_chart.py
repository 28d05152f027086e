"""Charts are figures whose points lie where their values say, and no data is a chart of nothing."""

import xml.etree.ElementTree as ET

import pytest

from pipeline.pages.chart import Line, class_of, legend, line_chart


def parts(figure: str, tag: str) -> list[ET.Element]:
    return list(ET.fromstring(figure).iter(tag))


def places(figure: str) -> list[list[tuple[float, ...]]]:
    drawn = [part.attrib["points"].split() for part in parts(figure, "polyline")]
    return [[tuple(map(float, point.split(","))) for point in points] for points in drawn]


def test_points_lie_in_proportion_to_their_steps_and_higher_for_larger_values() -> None:
    (line,) = places(line_chart("Loss", [Line("a", ((0, 4.0), (50, 3.0), (100, 2.0)), 0)]))
    (left, low), (middle, half), (right, high) = line
    assert middle == pytest.approx((left + right) / 2, abs=0.1) and half == pytest.approx((low + high) / 2, abs=0.1)
    assert low < half < high, "SVG counts downwards"
    assert right == 440 - 8


def test_lines_share_one_scale() -> None:
    one, two = places(line_chart("Loss", [Line("a", ((0, 1.0), (10, 1.0)), 0), Line("b", ((0, 2.0), (20, 1.0)), 1)]))
    assert one[1][1] == two[1][1] and one[1][0] < two[1][0] and two[0][1] < one[0][1]


def test_grid_and_ends_are_written_as_asked() -> None:
    texts = [
        part.text for part in parts(line_chart("Rate", [Line("a", ((1, 1e-5), (4000, 2e-5)), 0)], number=".1e"), "text")
    ]
    assert "4,000 steps" in texts and "1,000" in texts and any(text and text.endswith("e-05") for text in texts)


def test_the_last_step_is_written_once_however_few_there_are() -> None:
    for most, words in ((1, ["0", "1 step"]), (2, ["0", "1", "2 steps"])):
        texts = [str(part.text) for part in parts(line_chart("Loss", [Line("a", ((most, 2.0),), 0)]), "text")]
        assert texts[4:] == words, "four are beside the grid"


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_equal_values_and_single_points_are_drawn(value: float) -> None:
    figure = line_chart("Loss", [Line("a", ((1, value), (2, value)), 0), Line("b", ((2, value),), 1), Line("c", (), 2)])
    assert len(places(figure)) == 1
    (dot,) = parts(figure, "circle")
    assert (float(dot.attrib["cx"]), float(dot.attrib["cy"])) == places(figure)[0][1]


def test_a_chart_without_points_is_left_out() -> None:
    assert line_chart("Loss", [Line("a", (), 0)]) == "" == line_chart("Loss", [])


def test_thirty_two_lines_look_different_and_the_legend_says_which_is_which() -> None:
    assert len({class_of(place) for place in range(32)}) == 32
    shown = ET.fromstring(f"<p>{legend(['a', '<b>'])}</p>")
    lines = list(shown.iter("polyline"))
    assert [line.attrib["class"] for line in lines] == ["c0", "c1"]
    assert "".join(shown.itertext()) == "a<b>"
