"""Stage two: train student image towers from cached teacher features. The teacher itself is never loaded here.

`distill` is a plain function of a picklable configuration; whoever calls it handles signals through `should_stop`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from typing import NamedTuple

import torch

from cache_schema import atomic
from cache_schema.errors import EnvironmentProblem, MismatchError, UsageError
from cache_schema.json_file import Json
from cache_schema.progress import Progress, silent
from cache_schema.recipe import differences
from stages.device import chosen_device
from stages.distill.amend import asked_again
from stages.distill.config import DistillConfig
from stages.distill.feed import Feed
from stages.distill.group import ALONE, Group
from stages.distill.job import DistillJob
from stages.distill.launched import device_of_process
from stages.distill.loop import TrainingStopped, train
from stages.distill.member import Member
from stages.distill.probe import Probe, open_probe
from stages.distill.resolve import open_feed, open_job
from stages.distill.shares import shares_of
from stages.files.apart import require_outside_sources
from stages.runs.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint
from stages.runs.folder import RunFolder, forget, open_folder
from stages.runs.record import RunRecord, read_record, write_record
from stages.settings.declare import settings_in
from stages.settings.record import values_of

__all__ = ["DistillConfig", "TrainingStopped", "distill", "distill_side_by_side"]

_ENDLESS = 2**31


def distill(
    config: DistillConfig,
    *,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Json]:
    """Trains the student that `config` asks for, or goes on where an earlier call stopped, and returns the result.

    A run that was stopped or killed and is called again ends with the same weights and metrics.jsonl, bit for bit, on
    a CPU with the same number of threads and the same micro batch. A run that has ended returns its result again.

    Args:
        config: what is asked.
        progress: called after every step.
        notice: called with a sentence about anything a person should know.
        should_stop: asked before every step.

    Returns:
        JSON: `run`, `model`, `student`, `num_parameters`, `steps`, `images_seen`, `loss` and `cosine` of the last step,
        `weights_sha256`, `has_text_tower`, and `seconds` that the last process took.

    Raises:
        UsageError, UnfinishedError, MismatchError: see `open_feed` and `open_job`.
        UsageError: `out` lies inside a cache, or inside a folder that the cache was made from; or an amendment that
            cannot be, see `asked_again`.
        RefusedError: `out` holds something else; nothing was touched.
        MismatchError: `out` is a run that was asked something else; shows the fields.
        LockedError: another process trains there.
        EnvironmentProblem: the device has not enough memory, or the disk not enough space.
        DivergedError: a loss or gradient is not finite. The last checkpoint stays.
        TrainingStopped: `should_stop` said so.
    """
    (result,) = distill_side_by_side([config], progress=progress, notice=notice, should_stop=should_stop)
    return result


def distill_side_by_side(
    configs: Sequence[DistillConfig],
    *,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    group: Group = ALONE,
) -> list[dict[str, Json]]:
    """Trains several students in one pass over the cache, each in its own folder, and returns the result of each.

    Pictures are read and decoded once, and what only the teacher decides is computed once. Each student ends as if it
    had been trained alone, bit for bit, on a CPU with the same threads and micro batch.

    Where `group` has several processes, all of them call this with the same configurations. Process 0 writes and
    speaks; a run may go on with another number of processes.

    Args:
        configs: at least one; they agree in what the students share, and differ in `out`.
        progress, notice, should_stop: as for `distill`. One process that is to stop stops all.
        group: the processes that compute a share of every batch each.

    Raises:
        UsageError: the configurations disagree in what students share, or two have one folder; or a batch cannot be
            shared by so many processes; says how many can.
        EnvironmentProblem: some of several students failed; says which and why. The others have ended.
        LostProcess: another process is gone.
        PipelineError, TrainingStopped: as for `distill`. In every process, also where it is the error of another one.
    """
    say = notice or _ignore
    if not group.leads:
        say, progress = _ignore, None
    with _threads(configs[0].num_threads), ExitStack() as stack:
        with group.agreed():
            _require_alike(configs)
            chosen_device(configs[0].device, "training", say)
            configs = [_of_process(config, group) for config in configs]
            feed = open_feed(configs[0])
            jobs = [open_job(config, feed, notice=say) for config in configs]
            feed = replace(feed, largest=_largest([job.student.preprocess.size for job in jobs]))
            jobs = [replace(job, feed=feed) for job in jobs]
            shares = shares_of(jobs[0].method.batch_size, [job.group_size for job in jobs], group.size)
        _require_same_tools(jobs[0], group)
        with group.agreed():
            for config in configs if group.leads else ():
                if not RunFolder(config.out).run_json.exists():
                    plans = (feed.images.plan, feed.texts.plan)
                    uris = [source.uri for plan in plans for source in plan.sources]
                    require_outside_sources(config.out, "--out", uris)
            beginnings = [_begin(job, stack, say) for job in jobs] if group.leads else []
        if not group.leads:
            said = group.broadcast(None)
        else:
            said = group.broadcast([beginning.to_json() for beginning in beginnings])
        with group.agreed():
            if not group.leads:
                beginnings = [_Beginning.of(job, value) for job, value in zip(jobs, said, strict=True)]
            probe = cache(partial(_open_probe, configs[0], feed)) if group.leads else _no_probe
            begun = [_join(job, beginning, probe, group, say) for job, beginning in zip(jobs, beginnings, strict=True)]
        members = [member for member in begun if isinstance(member, Member)]
        for member in members:
            member.share_out(shares)
        if members:
            steps = max(member.steps for member in members)
            said, *more = feed.described()
            for sentence in (f"{steps:,} steps of {said}", *more):
                say(sentence)
            train(
                feed,
                members,
                group=group,
                shares=shares,
                progress=progress or silent,
                notice=say,
                should_stop=should_stop or _never,
            )
            _require_well(members)
        return [_result_of(member) for member in begun]


def _require_alike(configs: Sequence[DistillConfig]) -> None:
    shared = [name for name, about in settings_in(DistillConfig).items() if not about.own]
    first = values_of(configs[0])
    for config in configs[1:]:
        for name in shared:
            if getattr(config, name) != first[name]:
                raise UsageError(
                    f"students that learn side by side share {name}, and it is {first[name]!r} for {configs[0].out} "
                    f"and {getattr(config, name)!r} for {config.out}: give one value, or train them one after the other"
                )
    outs = [config.out.absolute() for config in configs]
    for out in outs:
        if outs.count(out) > 1:
            raise UsageError(f"{out} is the folder of two students: give them names that differ")


def _of_process(config: DistillConfig, group: Group) -> DistillConfig:
    """Returns what `config` means for this process of `group`: its own GPU, and its part of the decoders."""
    if group.size == 1:
        return config
    decode_workers = config.decode_workers
    if decode_workers is None:
        decode_workers = max(1, config.num_decoders // group.num_here)
    return replace(config, device=device_of_process(config.device, group), decode_workers=decode_workers)


def _largest(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    heights, widths = zip(*sizes, strict=True)
    return max(heights), max(widths)


def _open_probe(config: DistillConfig, feed: Feed) -> Probe | None:
    if config.probe is None:
        return None
    return open_probe(config.probe, feed.texts, device=config.device, num_workers=config.num_decoders)


class _Beginning(NamedTuple):
    """Where a run begins or goes on; `fence` is that of the lock, in the process that holds it."""

    folder: RunFolder
    record: RunRecord
    checkpoint: Checkpoint | None
    fence: atomic.Fence | None

    def to_json(self) -> Json:
        """Returns what the other processes need to begin at the same place."""
        record = self.record
        step = None if self.checkpoint is None else self.checkpoint.step
        of_record = {"asked": dict(record.asked), "about": dict(record.about), "result": record.result}
        return {"record": {**of_record, "format": record.format}, "step": step}

    @classmethod
    def of(cls, job: DistillJob, value: Json) -> "_Beginning":
        """Returns the same beginning in another process, which reads the checkpoint for itself."""
        folder = RunFolder(job.running.out.absolute())
        step = value["step"]
        checkpoint = None if step is None else read_checkpoint(folder.checkpoints, step)
        return cls(folder, RunRecord(**value["record"]), checkpoint, None)


def _begin(job: DistillJob, stack: ExitStack, say: Callable[[str], None]) -> _Beginning:
    """Returns where `job` begins, in a folder locked until `stack` is left."""
    folder = open_folder(job.running.out)
    fence = stack.enter_context(folder.lock()).fence
    if folder.run_json.exists() and job.running.fresh:
        forget(folder, fence=fence)
    if not folder.run_json.exists():
        if job.running.amend is not None:
            raise UsageError(f"--amend is for a run that is there, and {folder.root} holds none: drop it")
        write_record(folder, job.new_record(), fence=fence)
    then = read_record(folder)
    checkpoint = newest_checkpoint(folder.checkpoints, run=then.fingerprint, num_steps=_ENDLESS, notice=say)
    record = asked_again(folder, job, then, done=0 if checkpoint is None else checkpoint.step)
    _copy_probes(job, folder, fence)
    return _Beginning(folder, record, checkpoint, fence)


def _join(
    job: DistillJob, begun: _Beginning, probe: Callable[[], Probe | None], group: Group, say: Callable[[str], None]
) -> "Member | RunRecord":
    """Returns the member of `job`; the record of a run that has ended."""
    if begun.record.result is not None:
        say(f"run {begun.folder.root} has ended before; this is its result")
        return begun.record
    return Member(
        job,
        begun.folder,
        begun.record,
        begun.checkpoint,
        probe=probe(),
        fence=begun.fence,
        group=group,
        notice=say,
    )


def _require_same_tools(job: DistillJob, group: Group) -> None:
    """Raises `MismatchError` where a process would compute otherwise than process 0, or sees another cache."""
    if group.size == 1:
        return
    session = job.session(0, 0)
    mine = {
        "device": session["device"],
        "processor": torch.backends.cpu.get_cpu_capability(),
        "tools": {**session["tools"], "vlm-distill": version("vlm-distill")},
        "asked": dict(job.new_record().asked),
    }
    first, *others = group.collect(mine)
    for rank, theirs in enumerate(others, start=1):
        found = differences(theirs, first)
        if found:
            shown = "; ".join(f"{field}: {there!r}, and {here!r} for process 0" for field, there, here in found[:5])
            raise MismatchError(
                f"process {rank} of {group.size} differs from process 0 ({shown}): give all processes the same "
                "options, project, tools and kind of device"
            )


def _require_well(members: Sequence[Member]) -> None:
    """Raises what ended the only member, or an error that names those of several that failed."""
    failed = [member for member in members if member.failed is not None]
    if failed and len(members) == 1 and failed[0].failed is not None:
        raise failed[0].failed
    if failed:
        reasons = "; ".join(f"{member.folder.root}: {member.failed}" for member in failed)
        raise EnvironmentProblem(f"{len(failed)} of {len(members)} students failed ({reasons}); the others have ended")


def _result_of(member: "Member | RunRecord") -> dict[str, Json]:
    record = member.record if isinstance(member, Member) else member
    assert record.result is not None
    return dict(record.result)


def _copy_probes(job: DistillJob, folder: RunFolder, fence: atomic.Fence) -> None:
    """Copies what the teacher made of the probes, so that a run can check its teacher when the cache is gone."""
    feed: Feed = job.feed
    for array in (feed.images, feed.texts):
        stored, copy = feed.cache.layout.probes(array.modality, array.name), folder.probes(array.modality)
        if stored.exists() and not copy.exists():
            atomic.make_folder(copy.parent)
            atomic.publish_bytes(copy, stored.read_bytes(), fence=fence)


@contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if num_threads:
        torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _no_probe() -> None:
    """Stands for the probe in a process that does not measure."""


def _ignore(sentence: str) -> None:
    """Stands for a `notice` that nobody gave."""


_never = partial(bool, False)
