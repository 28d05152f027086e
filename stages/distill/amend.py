"""A run that is asked again: is it the same, and what may be changed in the middle of it, with a reason.

run.json keeps what was asked at first, whose fingerprint names the run, and beside it the amendments: from which step
on something else holds, and why. So the method of every step stays known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache_schema.errors import MismatchError, UsageError
from cache_schema.json_file import Json
from stages.distill.config import DEFAULT_TEMPERATURES, DEFAULT_WEIGHTS, Method, ResolvedMethod
from stages.distill.job import DistillJob
from stages.runs.folder import RunFolder
from stages.runs.record import RunRecord, require_same
from stages.settings.record import record_of

AMENDABLE = (
    "steps",
    "learning_rate",
    "min_learning_rate",
    "warmup_learning_rate",
    "warmup_share",
    "weights",
    "temperatures",
    "clip_grad",
    "skip_nonfinite",
)
"""Settings of the method that may change between two steps of a run."""

StepsAndMethods = Sequence[tuple[int, ResolvedMethod]]
"""Methods in the order in which they hold, each with the first step, from 0, of which it is the method."""


def asked_again(folder: RunFolder, job: DistillJob, then: RunRecord, *, done: int) -> RunRecord:
    """Returns the record of the run `then` that goes on as `job` says, with one more amendment if it asks for one.

    Without one, `job` may repeat what was asked at first or what was amended since.

    Args:
        folder: of the run.
        job: what is asked now.
        then: what run.json says.
        done: steps that the newest checkpoint has.

    Raises:
        MismatchError: something else was asked, that cannot be amended or was not said to be; shows the fields.
        UsageError: an amendment that changes nothing, or asks for fewer steps than are done.
    """
    reason = job.running.amend
    now = in_the_form_of(then, job)
    first = {**_defaults(AMENDABLE), **then.asked}
    holds = {**first, **{name: value for changes in _changes(then) for name, value in changes.items()}}
    now |= {name: holds[name] for name in AMENDABLE if now[name] == first[name]}
    if reason is None:
        try:
            require_same(folder, now, holds)
        except MismatchError as error:
            only_amendable = {**holds, **{name: now[name] for name in AMENDABLE}} == now
            more = ", or change it from here on with --amend REASON" if only_amendable else ""
            raise MismatchError(f"{error}{more}") from None
        return then
    changes = {name: now[name] for name in AMENDABLE if now[name] != holds[name]}
    require_same(folder, now, {**holds, **changes})
    if not changes:
        raise UsageError(
            f"--amend {reason!r} changes nothing in run {folder.root}: give another value of "
            f"{', '.join('--' + name.replace('_', '-') for name in AMENDABLE)} (--loss, --temperature), or drop it"
        )
    steps = now["steps"]
    if steps < done or (then.result is not None and steps <= done):
        raise UsageError(
            f"{steps:,} steps are asked for and run {folder.root} has done {done:,}: give more --steps to amend it"
        )
    amendment = {"step": done, "reason": reason, "changes": changes}
    about = {**then.about, "amendments": [*then.about.get("amendments", ()), amendment]}
    return replace(then, about=about, result=None)


def methods_of(job: DistillJob, record: RunRecord) -> StepsAndMethods:
    """Returns the methods of the run `record`, which `job` goes on with."""
    first = {**_defaults(AMENDABLE), **record.asked}
    methods = [(0, replace(job.method, **_values({name: first[name] for name in AMENDABLE})))]
    for amendment in record.about.get("amendments", ()):
        methods.append((amendment["step"], replace(methods[-1][1], **_values(amendment["changes"]))))
    return methods


def in_the_form_of(then: RunRecord, job: DistillJob) -> dict[str, Json]:
    """Returns what `job` asks, in the form in which `then` has kept it."""
    asked = dict(job.new_record().asked)
    if then.format == 1:
        used = [name for name, weight in asked["weights"].items() if weight]
        asked["weights"] = {name: asked["weights"][name] for name in used}
        asked["temperatures"] = {name: asked["temperatures"].get(name) for name in used}
        asked["mined_share"] = None if asked["negatives"] is None else asked["mined_share"]
        norm_batch_size = asked.pop("norm_batch_size")
        # For a student without batch statistics it was no more than memory.
        asked["micro_batch_size"] = then.asked["micro_batch_size"] if job.group_size is None else norm_batch_size
    # A setting that came later had no effect before.
    of_later = {name: value for name, value in _defaults().items() if name not in then.asked}
    return {
        name: value
        for name, value in asked.items()
        if name in AMENDABLE or name not in of_later or value != of_later[name]
    }


def _defaults(names: Sequence[str] | None = None) -> dict[str, Json]:
    """Returns the defaults of the recorded settings of the method, or of those called `names`."""
    recorded = record_of(Method(cache=Path()))
    return {name: value for name, value in recorded.items() if names is None or name in names}


def _changes(record: RunRecord) -> list[dict[str, Json]]:
    return [amendment["changes"] for amendment in record.about.get("amendments", ())]


def _values(recorded: Mapping[str, Json]) -> dict[str, Any]:
    """Returns the values of settings from their records, whatever the format of the run."""
    found = dict(recorded)
    if "weights" in found:
        found["weights"] = {**dict.fromkeys(DEFAULT_WEIGHTS, 0.0), **found["weights"]}
    if "temperatures" in found:
        given = {name: value for name, value in found["temperatures"].items() if value is not None}
        found["temperatures"] = {**DEFAULT_TEMPERATURES, **given}
    return found
