"""The training loop: batches in, one optimizer step of every student each."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing

from cache_schema.errors import PipelineError
from cache_schema.progress import Progress
from stages.distill.ahead import UploadedBatch, batches_ahead
from stages.distill.feed import Feed
from stages.distill.group import Group
from stages.distill.member import Member
from stages.distill.meter import Bottleneck
from stages.distill.peers import LostProcess


class TrainingStopped(KeyboardInterrupt):
    """`should_stop` said so; the state was saved, and the same call goes on from there."""


def train(
    feed: Feed,
    members: Sequence[Member],
    *,
    group: Group,
    shares: Sequence[slice],
    progress: Progress,
    notice: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> None:
    """Trains every one of `members` to its last step; one that fails says why in `failed`, and the others go on.

    Members that are ahead wait for the others: a batch is made once for all that need it. The processes of `group`
    compute a share of every batch each; they stop, fail and end together.

    Args:
        feed: what they learn from.
        members: none of which has ended.
        group: the processes, or the only one.
        shares: rows of a batch of each process, see `shares_of`.
        progress: called after every step.
        notice: called with a sentence about a member that failed while others go on.
        should_stop: asked before every step.

    Raises:
        TrainingStopped: `should_stop` said so.
        PipelineError: the batch cannot be made; ends all of them.
        LostProcess: another process is gone; the last checkpoint stays.
    """
    first = members[0].job
    start, end = min(member.done for member in members), max(member.steps for member in members)
    with ExitStack() as stack:
        with group.agreed():
            for member in members if group.leads else ():
                member.open_files(stack)
                _when_done(member)
        for member in members:
            member.learn_result()
        if start == end:
            return
        with group.agreed():
            pictures = feed.open_pictures(
                sorted({member.shape for member in members}),
                num_workers=first.running.num_decoders,
                progress=progress,
                notice=notice,
                of_share=group.size > 1,
            )
        maker = feed.batch_maker(pictures, first.method, shares[group.rank])
        batches = batches_ahead(maker, range(start, end), first.device)
        # Pictures are closed first: whoever waits for them is let go.
        stack.enter_context(closing(batches))
        stack.enter_context(pictures)
        bottleneck = Bottleneck()
        while True:
            waiting = time.perf_counter()
            with group.agreed():
                uploaded = next(batches, None)
            if uploaded is None:
                return
            batch = uploaded.batch
            waited = time.perf_counter() - waiting
            learning = [member for member in members if member.failed is None and not member.has_ended]
            if not learning:
                return
            if group.agree(flag=should_stop()):
                raise _stopped(batch.step, end, learning, group)
            shared = {"wait": waited, **batch.seconds}
            notes = _step_of_all(learning, uploaded, shared)
            for member in (member for member in learning if member.failed is not None and len(members) > 1):
                notice(f"{member.folder.root} goes no further, the others do ({member.failed})")
            said = bottleneck.of(shared, *(member.phases for member in learning))
            progress(batch.step + 1, end, "steps", "; ".join([*notes, said]))
            # Its memory is free for the batches to come.
            del uploaded, batch


def _step_of_all(members: Sequence[Member], uploaded: UploadedBatch, shared: Mapping[str, float]) -> list[str]:
    """Does the step of every member that is at it, with what follows it; returns what each says of it."""
    batch = uploaded.batch
    uploaded.receive()
    notes = []
    for member in (member for member in members if member.done == batch.step):
        try:
            with member.group.agreed():
                notes.append(member.step(batch, uploaded.pixels[member.shape], uploaded.teacher, shared=shared))
                if member.group.leads:
                    _when_done(member, or_due=True)
            if member.done == member.steps:
                member.learn_result()
        except LostProcess:
            raise
        except PipelineError as error:
            member.failed = error
    return notes


def _when_done(member: Member, *, or_due: bool = False) -> None:
    """Ends a member that has all its steps; with `or_due` saves another one whose checkpoint is due."""
    if member.done == member.steps:
        member.end()
    elif or_due and member.checkpoint_is_due():
        member.save()


def _stopped(step: int, end: int, members: Sequence[Member], group: Group) -> TrainingStopped:
    """Saves every one of `members` and returns what to raise, once all is saved."""
    with group.agreed():
        for member in members if group.leads else ():
            if member.done == step:
                member.save(wait=True)
    where = ", ".join(str(member.folder.root) for member in members)
    return TrainingStopped(f"stopped at step {step:,} of {end:,}, state saved in {where}: run again to go on")
