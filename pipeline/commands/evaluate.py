"""`pipeline evaluate`: measure a student or a teacher on labelled images."""

from typing import Any

import click

from pipeline.options.fields import settings_of
from pipeline.options.shared import shared_options
from pipeline.options.types import Text
from pipeline.output import print_note, print_result, table
from pipeline.progress import open_progress
from stages.evaluate.config import EvaluateConfig

# What people read first; the rest is in --json.
MEASURES = (
    ("zero_shot_top1", "zero-shot accuracy"),
    ("mean_per_class_recall", "mean over classes"),
    ("chance", "chance"),
    ("largest_class", "always the largest class"),
    ("teacher_top1", "zero-shot accuracy of the teacher"),
    ("agreement_top1", "same class as the teacher"),
    ("mean_cosine", "cosine to the teacher's features"),
)


@click.command(
    epilog="""\b
Examples:
  pipeline evaluate run --data held-out
  pipeline evaluate open_clip:ViT-L-14/openai run1 run2 --data held-out --json
  pipeline evaluate run@newest --data held-out
RUN@STEP is a checkpoint of a run, finished or not: a number of steps, newest or best.
DIR has the CLIP_benchmark webdataset layout: classnames.txt, zeroshot_classification_templates.txt,
test/0.tar with pictures and .cls files."""
)
@click.argument("models", metavar="MODEL...", type=Text("MODEL"), nargs=-1, required=True)
@settings_of(EvaluateConfig)
@shared_options
def command(models: tuple[str, ...], as_json: bool, quiet: bool, **settings: Any) -> None:
    """Measure each MODEL (a run, RUN@STEP, an exported folder or a teacher) on labelled pictures and by its teacher."""
    configs = [EvaluateConfig(model=model, **settings) for model in models]
    from stages.evaluate.run import SeenTeachers, evaluate_model

    # A teacher that several models have in common looks at the pictures once.
    seen: SeenTeachers = {}
    with open_progress("evaluate", quiet=quiet) as progress:
        results = [evaluate_model(c, seen_teachers=seen, progress=progress, notice=print_note) for c in configs]
    print_result(
        results[0] if len(results) == 1 else {"models": results},
        as_json=as_json,
        lines=[line for result in results for line in _lines(result)],
    )


def _lines(result: dict[str, Any]) -> list[str]:
    measures = [{"measure": words, "value": result[key]} for key, words in MEASURES if result.get(key) is not None]
    head = f"{result['model']} on {result['num_images']:,} pictures of {result['num_classes']:,} classes"
    return [head, *table(measures, ("measure", "value"))]
