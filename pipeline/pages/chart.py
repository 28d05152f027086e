"""Lines against steps as inline SVG figures, and the legend that they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 440, 230, 52, 8, 10, 28
_COLOURS, _DASHES = 8, 4


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name, its points (step, value) with ascending steps, and its place in the legend."""

    name: str
    points: Sequence[tuple[float, float]]
    place: int


def line_chart(title: str, lines: Sequence[Line], *, number: str = ".2f") -> str:
    """Returns `lines` as an SVG figure; one point is a dot, and a chart without any point is an empty string.

    Args:
        title: stands above.
        lines: each in the colour of its place.
        number: how values are written beside the grid.
    """
    every = [point for line in lines for point in line.points]
    if not every:
        return ""
    most_steps = max(step for step, _ in every) or 1
    low, high = min(value for _, value in every), max(value for _, value in every)
    span = (high - low) or abs(high) or 1.0
    low, high = low - 0.05 * span, high + 0.05 * span

    def place_of(point: tuple[float, float]) -> tuple[float, float]:
        step, value = point
        return (
            _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / most_steps,
            _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low),
        )

    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'role="img" aria-label="{escape(title)}">'
        + "".join(
            _grid_line(place_of((0, value))[1], format(value, number))
            for value in (low + (high - low) * part for part in (0.08, 0.36, 0.64, 0.92))
        )
        + "".join(
            _tick(place_of((step, low))[0], f"{step:,.0f}", "middle")
            for step in dict.fromkeys(round(most_steps * part) for part in (0.0, 0.25, 0.5, 0.75))
            if step < most_steps
        )
        + _tick(_WIDTH - _RIGHT, "1 step" if most_steps == 1 else f"{most_steps:,.0f} steps", "end")
        + "".join(_drawn(line, [place_of(point) for point in line.points]) for line in lines)
        + "</svg></figure>"
    )


def legend(names: Sequence[str]) -> str:
    """Returns the legend of lines with these `names`, in the order of their places."""
    return "".join(
        '<span><svg viewBox="0 0 26 8" aria-hidden="true">'
        f'<polyline class="{class_of(place)}" points="0,4 26,4"/></svg>{escape(name)}</span>'
        for place, name in enumerate(names)
    )


def class_of(place: int) -> str:
    """Returns the CSS classes of the line at `place`: eight colours, then the same dashed."""
    dash = place // _COLOURS % _DASHES
    return f"c{place % _COLOURS}" + (f" d{dash}" if dash else "")


def _grid_line(y: float, words: str) -> str:
    return (
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{words}</text>'
    )


def _tick(x: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{words}</text>'


def _drawn(line: Line, places: Sequence[tuple[float, float]]) -> str:
    named = f"<title>{escape(line.name)}</title>"
    if len(places) == 1:
        (x, y) = places[0]
        return f'<circle class="{class_of(line.place)}" cx="{x:.1f}" cy="{y:.1f}" r="3">{named}</circle>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="{class_of(line.place)}" points="{points}">{named}</polyline>' if places else ""
