"""Faults that some test must see: each is planted in a copy of the tree, where the tests named beside it must fail.

    python -m tests.mutants                         plants all of them
    python -m tests.mutants --only NAME             plants this one
    python -m tests.mutants --json                  prints what came of each as one JSON object

The tests have to pass without the fault. The program ends with 1 when a mutant survives, or when its tests do not run.
Where code moves, `tests/test_mutants.py` says which mutants have to follow.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS_OF_TREE = ("cache_schema", "stages", "pipeline", "tests", "pyproject.toml")
TIMEOUT_SECONDS = 240

_PASSED, _FAILED = 0, 1
"""What pytest ends with when tests passed, and when some did not; with anything else they did not run."""


@dataclass(frozen=True)
class Mutant:
    """A fault, and the tests that must see it.

    Attributes:
        name: what is wrong.
        file: relative to the root.
        old: a text that occurs once in it.
        new: what stands there instead.
        tests: node ids of pytest, of which at least one must fail; all are of the everyday suite.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_TRAJECTORY = "tests/stages/distill/test_trajectory.py::"
_OWN = (f"{_TRAJECTORY}test_own_crops_and_random_sentences_give_the_plain_gradients_and_weights",)
_MINED = (f"{_TRAJECTORY}test_mined_sentences_and_batch_statistics_give_the_plain_gradients_and_weights",)
_REPLAYED = (f"{_TRAJECTORY}test_replayed_views_give_the_plain_gradients_and_weights",)
_SECOND_ROUND = (f"{_TRAJECTORY}test_a_second_round_goes_on_from_the_weights_of_the_first",)
_EXTRACT = "tests/stages/extract/test_recipe_fields.py::"
_ONE_SHAPE = ("tests/stages/extract/test_batches.py::test_every_batch_has_the_same_shape_and_none_crosses_a_part",)
_BY_HAND = "tests/stages/evaluate/test_by_hand.py::"
_MEASURES = (f"{_BY_HAND}test_both_measures_are_those_of_numpy_and_differ_where_classes_are_not_equally_many",)
_CLASS_VECTORS = (f"{_BY_HAND}test_a_class_vector_is_the_unit_mean_of_the_unit_features_of_its_prompts",)


def _method(field: str) -> tuple[str, ...]:
    name = "test_a_field_of_the_method_changes_the_weights_and_the_fingerprint"
    return (f"tests/stages/distill/test_method_and_running.py::{name}[{field}]",)


_MEMBER, _RESOLVE = "stages/distill/member.py", "stages/distill/resolve.py"
_STEP = "stages/distill/step.py"
_BATCHES, _OPTIMIZER = "stages/distill/batches.py", "stages/distill/optimizer.py"
_MICRO, _OF_MEMBER = "stages/distill/micro_batch.py", "tests/stages/distill/test_member.py::"
_HELD_OUT = "tests/stages/distill/test_held_out.py::"
_NEVER_SEEN = tuple(
    f"{_HELD_OUT}test_the_student_trains_on_all_other_pictures_and_on_no_held_out_one_nor_its_copy[in memory-{how}]"
    for how in ("share", "selection")
)
_STREAMED = (
    "tests/stages/distill/test_streamed_losses.py::test_value_and_gradient_are_those_of_the_formula[vl-41-20.0]",
    "tests/stages/distill/test_streamed_losses.py::test_value_and_gradient_are_those_of_the_formula[udist-41-20.0]",
)
_AVERAGED = (
    "tests/stages/distill/test_averaged.py::test_the_exported_student_has_the_average_of_the_weights_after_every_step",
)
_SEVERAL = "tests/stages/distill/test_several_processes.py::"
_AS_ONE = (f"{_SEVERAL}test_gradients_statistics_and_weights_of_several_processes_are_those_of_one[2]",)
_RUN_AS_ONE = (f"{_SEVERAL}test_several_students_train_in_several_processes_as_in_one",)
_LOOP, _GROUP = "stages/distill/loop.py", "stages/distill/group.py"
_GRADIENT, _PADDED = "stages/distill/gradient_cache.py", "stages/teachers/batches.py"

MUTANTS = (
    Mutant(
        "learning rate never reaches the optimiser", _STEP, 'parameters["lr"] = rate', 'parameters["lr"] = 1e-3', _OWN
    ),
    Mutant("warm-up share ignored", _STEP, "warmup_share=method.warmup_share", "warmup_share=0.04", _OWN),
    Mutant("least learning rate ignored", _STEP, "least=min(method.min_learning_rate", "least=min(4e-5", _MINED),
    Mutant("warm-up starts at its default", _STEP, "=min(method.warmup_learning_rate", "=min(4e-6", _OWN),
    Mutant("student left in evaluation mode", _RESOLVE, "student=student.train()", "student=student.eval()", _MINED),
    Mutant("student without dropout", _RESOLVE, "student=student.train()", "student=student.eval()", _OWN),
    Mutant(
        "sentence features shifted by a row",
        _BATCHES,
        "gather_unit(self._texts_of_step(",
        "gather_unit((lambda *of: np.roll(self.text_rows, 1)[np.isin(self.text_rows, self._texts_of_step(*of))])(",
        _OWN,
    ),
    Mutant("logit scale always 100", _STEP, "logit_scale=method.logit_scale", "logit_scale=100.0", _MINED),
    Mutant("the teacher's own scale ignored", _RESOLVE, "or texts.recipe.logit_scale", "or 100.0", _OWN),
    Mutant("an asked logit scale ignored", _RESOLVE, "config.logit_scale or texts", "texts", _method("logit_scale")),
    Mutant("temperatures ignored", _STEP, "temperatures=method.temperatures", "temperatures={}", _OWN),
    Mutant("weights of the losses ignored", _STEP, "weights=method.weights", 'weights={"vl": 0.7, "pvl": 0.3}', _OWN),
    Mutant("weight decay ignored", _MEMBER, "weight_decay=job.method.weight_decay", "weight_decay=0.05", _OWN),
    Mutant("all processes have the first share", _LOOP, "shares[group.rank]", "shares[0]", _RUN_AS_ONE),
    Mutant("gradients stay apart", _STEP, "group.sum(gradients)", "group.sum(gradients[:0])", _RUN_AS_ONE),
    Mutant("gradients are averaged", _GROUP, ".view_as(tensor))", ".view_as(tensor) / self.size)", _AS_ONE),
    Mutant("processes draw alike", _GRADIENT, "first_place + place for", "place for", _AS_ONE),
    Mutant(
        "statistics of other processes ignored",
        "stages/distill/statistics.py",
        "of_all = self._group.gather(mine)",
        "of_all = mine",
        _AS_ONE,
    ),
    Mutant(
        "only the process that is to stop stops",
        _LOOP,
        "group.agree(flag=should_stop())",
        "should_stop()",
        (f"{_SEVERAL}test_one_that_is_to_stop_stops_all_and_the_run_goes_on_with_another_number_of_processes",),
    ),
    Mutant("everything decays", _OPTIMIZER, '"weight_decay": 0.0}', '"weight_decay": weight_decay}', _OWN),
    Mutant("Adam's betas wrong", _OPTIMIZER, "ADAM_BETAS = (0.9, 0.999)", "ADAM_BETAS = (0.9, 0.98)", _OWN),
    Mutant("Adam's epsilon wrong", _OPTIMIZER, "ADAM_EPS = 1e-8", "ADAM_EPS = 1e-4", _OWN),
    Mutant("gradient scaled", _GRADIENT, "[gradient_BD[group].to(", "[(2 * gradient_BD[group]).to(", _OWN),
    Mutant(
        "selection of images ignored",
        _RESOLVE,
        "_eligible(images, image_selection,",
        "_eligible(images, None,",
        _method("images"),
    ),
    Mutant(
        "selection of sentences ignored",
        _RESOLVE,
        "_eligible(texts, text_selection,",
        "_eligible(texts, None,",
        _method("texts"),
    ),
    Mutant(
        "norm batches ignored",
        _MICRO,
        "size, self._job.group_size, share)",
        "size, None, share)",
        _method("norm_batch_size"),
    ),
    Mutant("clipping ignored", _STEP, "if method.clip_grad:", "if False:", _method("clip_grad")),
    Mutant(
        "averages never exported",
        _MEMBER,
        "return nullcontext() if self._average is None else self._average.in_place()",
        "return nullcontext()",
        _AVERAGED,
    ),
    Mutant(
        "statistics of a step that was left out stay",
        _MEMBER,
        "        if metrics is None:\n            self._put_back(statistics)\n",
        "        if metrics is None:\n",
        (f"{_OF_MEMBER}test_a_step_that_is_not_finite_is_left_out_when_asked_and_leaves_no_trace",),
    ),
    Mutant(
        "amendments never hold",
        _MEMBER,
        "reversed(self._methods) if first <= step)",
        "self._methods if first <= step)",
        ("tests/stages/distill/test_amend.py::test_several_amendments_follow_each_other",),
    ),
    Mutant(
        "held-out images are trained on",
        _RESOLVE,
        "rows = without_held_out(cache, rows, held_rows)",
        "without_held_out(cache, rows, held_rows)",
        _NEVER_SEEN,
    ),
    Mutant(
        "copies of held-out images are trained on",
        "stages/distill/held_out.py",
        "some[~_are_among(pictures, digests)]",
        "some[~np.isin(some, held_out)]",
        _NEVER_SEEN,
    ),
    Mutant(
        "measuring leaves the student in evaluation mode",
        "stages/distill/watch.py",
        "                student.train()\n",
        "                pass\n",
        (f"{_HELD_OUT}test_measuring_changes_nothing_of_the_training",),
    ),
    Mutant(
        "the best checkpoint makes room",
        _MEMBER,
        "also=also",
        "also=frozenset()",
        (f"{_HELD_OUT}test_the_best_checkpoint_by_agreement_stays_beside_the_newest",),
    ),
    *(
        Mutant(name, "stages/distill/streamed_losses.py", old, new, _STREAMED)
        for name, old, new in (
            ("a streamed loss of one direction", "weights += along_columns", "weights += 0 * along_columns"),
            ("a streamed gradient without the mean", "+= along_columns.sum(", "+= 0 * along_columns.sum("),
            ("streamed angles of one side", "            if itself:\n", "            if False:\n"),
            ("a streamed gradient uphill", "return summed, q.sub_(p)", "return summed, p.sub_(q)"),
            ("a streamed gradient unscaled", "weights *= student.scale / num_rows", "weights *= 1 / num_rows"),
            ("streamed norms ignored", "unit * (wanted * unit)", "0 * unit * (wanted * unit)"),
            ("streamed sums of the last tile alone", "self._sum[some] * (before", "0 * self._sum[some] * (before"),
        )
    ),
    Mutant(
        "a checkpoint of later weights",
        "stages/runs/saver.py",
        "self._snapshot[name].copy_(tensor.detach())",
        "self._snapshot[name] = tensor.detach()",
        ("tests/stages/runs/test_saver.py::test_a_checkpoint_holds_the_tensors_of_its_step_while_training_goes_on",),
    ),
    Mutant("minimal crop ignored", _BATCHES, "scale=(self.method.min_crop, 1.0)", "scale=(0.08, 1.0)", _OWN),
    Mutant("an asked flip ignored", _BATCHES, "flip=self.method.flip", "flip=True", _MINED),
    Mutant("flip ignored", _BATCHES, "flip=self.method.flip", "flip=False", _OWN),
    Mutant("every epoch shows the same crops", _BATCHES, "(epochs + 1).tolist()", "[1] * len(epochs)", _OWN),
    Mutant("mined sentences ignored", _BATCHES, "else self.neighbours.ids(image_rows)", "else None", _MINED),
    Mutant("mined share ignored", _BATCHES, "mined_share=self.method.mined_share", "mined_share=0.5", _MINED),
    Mutant("seed ignored for crops", _BATCHES, "            self.method.seed,\n", "            0,\n", _OWN),
    Mutant("seed ignored for sentences", _BATCHES, "seed=self.method.seed, step=step", "seed=0, step=step", _OWN),
    Mutant("seed ignored for order", _RESOLVE, "        seed=config.seed,\n", "        seed=0,\n", _OWN),
    Mutant(
        "seed ignored for the random start",
        _RESOLVE,
        "_student(specification, dim, seed=config.seed",
        "_student(specification, dim, seed=0",
        _OWN,
    ),
    Mutant(
        "seed ignored for dropout", _STEP, "randomness=(method.seed, batch.step)", "randomness=(0, batch.step)", _OWN
    ),
    Mutant("shuffle window ignored", _RESOLVE, "window_parts=config.window_parts or (", "window_parts=(", _OWN),
    Mutant("bfloat16 never used", _GRADIENT, 'enabled=precision == "bfloat16"', "enabled=False", _method("precision")),
    Mutant(
        "an asked precision ignored", _RESOLVE, "return config.precision\n", 'return "float32"\n', _method("precision")
    ),
    Mutant(
        "a second round from random weights",
        _RESOLVE,
        "student.load_state_dict(trained.state_dict())",
        "trained.state_dict()",
        _SECOND_ROUND,
    ),
    Mutant(
        "replayed views with the features of view 0",
        _BATCHES,
        "replay.features(visits.rows, visits.epochs)",
        "self.images.features.gather_unit(visits.rows)",
        _REPLAYED,
    ),
    Mutant(
        "one view replayed for ever",
        "stages/distill/replay.py",
        "return epochs % len(self.arrays)",
        "return epochs * 0",
        _REPLAYED,
    ),
    Mutant("last pictures of a part not padded", _PADDED, "[*pictures_HWC, *padding]", "[*pictures_HWC]", _ONE_SHAPE),
    Mutant(
        "last sentences of a part not padded",
        _PADDED,
        '[*texts, *[""] * (batch_size - len(texts))]',
        "[*texts]",
        _ONE_SHAPE,
    ),
    Mutant(
        "view ignored by the crops",
        "stages/images/views.py",
        "crop_of(self.seed, self.view, digest",
        "crop_of(self.seed, 1, digest",
        _REPLAYED,
    ),
    Mutant(
        "seed of the views ignored",
        "stages/images/views.py",
        "crop_of(self.seed, self.view, digest",
        "crop_of(0, self.view, digest",
        _REPLAYED,
    ),
    Mutant(
        "view outside the fingerprint",
        "cache_schema/recipe.py",
        '_BESIDE = ("specification", ',
        '_BESIDE = ("view", "specification", ',
        (f"{_EXTRACT}test_a_field_of_the_identity_changes_the_fingerprint[view]",),
    ),
    Mutant(
        "precision not in the recipe",
        "stages/teachers/base.py",
        "precision=precision,",
        'precision="float32",',
        (f"{_EXTRACT}test_an_option_that_can_change_a_feature_changes_fingerprints[precision]",),
    ),
    Mutant(
        "templates ignored",
        "stages/evaluate/data.py",
        "for template in self.templates]",
        "for template in self.templates[:1]]",
        _MEASURES,
    ),
    Mutant("labels shifted", "stages/evaluate/encode.py", "np.array(labels)", "np.roll(labels, 1)", _MEASURES),
    Mutant(
        "mean per class is top-1",
        "stages/evaluate/metrics.py",
        '"mean_per_class_recall": mean_per_class_recall}',
        '"mean_per_class_recall": top1}',
        _MEASURES,
    ),
    Mutant(
        "class vectors of the first prompt alone",
        "stages/teachers/class_vectors.py",
        ".mean(axis=0)",
        "[0]",
        _CLASS_VECTORS,
    ),
    Mutant(
        "class vectors from features of any length",
        "stages/teachers/class_vectors.py",
        'usable_unit_rows(encoded, f"prompts such as {prompts[0]!r}")',
        "encoded",
        _CLASS_VECTORS,
    ),
)


@dataclass(frozen=True)
class Verdict:
    """What came of planting a mutant.

    Attributes:
        name: of the mutant.
        outcome: "died", "survived", or "did not run", when the tests say nothing about it.
        seen_by: pytest's own line about the first test that failed; else the end of what pytest said.
        seconds: that its tests took.
    """

    name: str
    outcome: str
    seen_by: str
    seconds: float


@contextmanager
def copied_tree(root: Path = ROOT) -> Iterator[Path]:
    """Yields a copy of everything that tests need, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        for name in PARTS_OF_TREE:
            if (root / name).is_dir():
                shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (root / name).exists():
                shutil.copy2(root / name, copy / name)
        yield copy


@contextmanager
def planted(mutant: Mutant, tree: Path) -> Iterator[None]:
    """Context in which `tree` has the fault.

    Raises:
        ValueError: the text to replace does not occur exactly once.
    """
    path = tree / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"mutant {mutant.name!r}: {mutant.old!r} occurs {text.count(mutant.old)} times in {mutant.file}, "
            "not once: write down where that code is now"
        )
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        yield
    finally:
        path.write_text(text)


def judge(mutant: Mutant, tree: Path) -> Verdict:
    """Plants `mutant` in `tree`, runs its tests there, and takes it out again."""
    started = time.monotonic()
    with planted(mutant, tree):
        code, said = run_tests(mutant.tests, tree)
    outcome = {_PASSED: "survived", _FAILED: "died"}.get(code, "did not run")
    failed = re.search(r"^(?:FAILED|ERROR) (.*)$", said, re.MULTILINE)
    return Verdict(mutant.name, outcome, failed[1] if failed else said[-500:].strip(), time.monotonic() - started)


def run_tests(tests: Sequence[str], tree: Path) -> tuple[int, str]:
    """Runs pytest in `tree` and returns what it ends with and what it says."""
    # Without bytecode: a fault and its removal may fall into one second, by which Python tells old bytecode from new.
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "400"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return -1, f"took more than {TIMEOUT_SECONDS} seconds"
    return done.returncode, done.stdout + done.stderr


def main(arguments: Sequence[str] | None = None) -> int:
    """Plants the mutants, prints what came of each, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Plants faults that tests must see.")
    names = [mutant.name for mutant in MUTANTS]
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=names, help="plant this one; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if not given.only or mutant.name in given.only]
    verdicts = []
    with copied_tree() as tree:
        code, said = run_tests(sorted({test for mutant in chosen for test in mutant.tests}), tree)
        if code != _PASSED:
            print(f"{said}\nthe tests have to pass before a fault is planted", file=sys.stderr)
            return 1
        for mutant in chosen:
            verdict = judge(mutant, tree)
            verdicts.append(verdict)
            if not given.json:
                print(
                    f"{verdict.outcome:12} {verdict.seconds:5.1f} s  {verdict.name}\n    {verdict.seen_by}", flush=True
                )
    alive = [verdict.name for verdict in verdicts if verdict.outcome != "died"]
    if given.json:
        print(json.dumps({"alive": alive, "verdicts": [vars(verdict) for verdict in verdicts]}, indent=1))
    else:
        print(f"{len(verdicts) - len(alive)} of {len(verdicts)} mutants died")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
