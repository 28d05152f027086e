"""The end of a run: the trained student as a model folder, with its teacher's text tower where that can be had."""

from collections.abc import Callable

from cache_schema import atomic
from cache_schema.errors import PipelineError
from cache_schema.json_file import Json
from cache_schema.layout import MODALITIES
from stages.export.model_folder import export_image_tower, export_pair
from stages.runs.folder import RunFolder
from stages.runs.record import RunRecord
from stages.students import Student


def export_trained(
    student: Student,
    folder: RunFolder,
    record: RunRecord,
    *,
    fence: atomic.Fence | None,
    notice: Callable[[str], None],
) -> dict[str, Json]:
    """Writes the model folder of a run and returns `weights_sha256` and `has_text_tower`.

    A teacher whose text tower cannot be had now is no error: the image tower is complete, and the notice says how to
    add the other one later. Leaves `student` on the CPU in evaluation mode.

    Args:
        student: trained.
        folder: of the run.
        record: of the run.
        fence: of the lock of the run.
        notice: called with a sentence about a text tower that is not there.
    """
    teacher = record.about["teacher"]
    sha256 = export_image_tower(
        student,
        folder.model,
        about={"run": record.fingerprint, "teacher": teacher},
        teacher_probes={m: folder.probes(m).read_bytes() for m in MODALITIES if folder.probes(m).exists()},
        fence=fence,
    )
    has_text_tower = False
    if teacher["specification"].startswith("open_clip:"):
        try:
            export_pair(student, folder.model, teacher["specification"], fence=fence)
            has_text_tower = True
        except PipelineError as error:
            notice(
                f"{folder.model} holds the image tower only, because the teacher's text tower could not be added "
                f'({error}); to complete it: python -c "from stages.export.model_folder import add_text_tower; '
                f"add_text_tower('{folder.root}')\""
            )
    return {"weights_sha256": sha256, "has_text_tower": has_text_tower}
