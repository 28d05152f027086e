"""What a run says of the sources that it was given: which were empty or useless, and what of them is no sample."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.parts.job import PartsJob
    from stages.parts.useless import UselessSource

_MOST_SHOWN = 8


def sources_of(job: "PartsJob[Any]", useless: "Sequence[UselessSource]") -> dict[str, Any]:
    """Returns what is said of the sources of a finished job, as JSON."""
    from stages.parts.useless import ignored_by

    plans = {modality: job.cache.plan(modality) for modality in job.arrays}
    return {
        "empty": [uri for named in job.sources.values() for uri in named.empty],
        "ignored": {modality: ignored_by(plan, job.sources[modality]) for modality, plan in plans.items()},
        "useless": [source.to_json() for source in useless],
    }


def source_lines(sources: Mapping[str, Any]) -> list[str]:
    """Returns lines for people about `sources_of` a job; useless ones are an error, and said there."""
    lines = [f"skipped, without a sample: {uri}" for uri in sources["empty"]]
    for modality, ignored in sources["ignored"].items():
        shown = [f"{count:,} {what}" for what, count in list(ignored.items())[:_MOST_SHOWN]]
        more = f" and {len(ignored) - _MOST_SHOWN} other kinds" if len(ignored) > _MOST_SHOWN else ""
        if shown:
            lines.append(f"no samples, beside the {modality}s: {', '.join(shown)}{more}")
    return lines
