"""The training loop: batches in, one optimizer step of every student each."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing

from cache_schema.errors import PipelineError
from cache_schema.progress import Progress
from stages.distill.ahead import UploadedBatch, batches_ahead
from stages.distill.feed import Feed
from stages.distill.member import Member
from stages.distill.meter import Bottleneck


class TrainingStopped(KeyboardInterrupt):
    """`should_stop` said so; the state was saved, and the same call goes on from there."""


def train(
    feed: Feed,
    members: Sequence[Member],
    *,
    progress: Progress,
    notice: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> None:
    """Trains every one of `members` to its last step; one that fails says why in `failed`, and the others go on.

    Members that are ahead wait for the others: a batch is made once for all that need it.

    Args:
        feed: what they learn from.
        members: none of which has ended.
        progress: called after every step.
        notice: called with a sentence about a member that failed while others go on.
        should_stop: asked before every step.

    Raises:
        TrainingStopped: `should_stop` said so.
        PipelineError: the batch cannot be made; ends all of them.
    """
    first = members[0].job
    start, end = min(member.done for member in members), max(member.steps for member in members)
    with ExitStack() as stack:
        for member in members:
            member.open_files(stack)
            _when_done(member)
        if start == end:
            return
        pictures = feed.open_pictures(
            sorted({member.shape for member in members}),
            num_workers=first.running.num_decoders,
            progress=progress,
            notice=notice,
        )
        batches = batches_ahead(feed.batch_maker(pictures, first.method), range(start, end), first.device)
        # Pictures are closed first: whoever waits for them is let go.
        stack.enter_context(closing(batches))
        stack.enter_context(pictures)
        bottleneck = Bottleneck()
        waiting = time.perf_counter()
        for uploaded in batches:
            batch = uploaded.batch
            waited = time.perf_counter() - waiting
            learning = [member for member in members if member.failed is None and not member.has_ended]
            if not learning:
                return
            if should_stop():
                raise _stopped(batch.step, end, learning)
            shared = {"wait": waited, **batch.seconds}
            notes = _step_of_all(learning, uploaded, shared)
            for member in (member for member in learning if member.failed is not None and len(members) > 1):
                notice(f"{member.folder.root} goes no further, the others do ({member.failed})")
            said = bottleneck.of(shared, *(member.phases for member in learning))
            progress(batch.step + 1, end, "steps", "; ".join([*notes, said]))
            # Its memory is free for the batches to come.
            del uploaded, batch
            waiting = time.perf_counter()


def _step_of_all(members: Sequence[Member], uploaded: UploadedBatch, shared: Mapping[str, float]) -> list[str]:
    """Does the step of every member that is at it, with what follows it; returns what each says of it."""
    batch = uploaded.batch
    uploaded.receive()
    notes = []
    for member in (member for member in members if member.done == batch.step):
        try:
            notes.append(member.step(batch, uploaded.pixels[member.shape], uploaded.teacher, shared=shared))
            _when_done(member, or_due=True)
        except PipelineError as error:
            member.failed = error
    return notes


def _when_done(member: Member, *, or_due: bool = False) -> None:
    """Ends a member that has all its steps; with `or_due` saves another one whose checkpoint is due."""
    if member.done == member.steps:
        member.end()
    elif or_due and member.checkpoint_is_due():
        member.save()


def _stopped(step: int, end: int, members: Sequence[Member]) -> TrainingStopped:
    """Saves every one of `members` and returns what to raise."""
    for member in members:
        if member.done == step:
            member.save(wait=True)
    where = ", ".join(str(member.folder.root) for member in members)
    return TrainingStopped(f"stopped at step {step:,} of {end:,}, state saved in {where}: run again to go on")
