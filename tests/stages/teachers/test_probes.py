"""Probes tell the right teacher from every seeded wrong one."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_schema.errors import MismatchError, RefusedError
from cache_schema.layout import Modality
from stages.teachers import Teacher, load_teacher
from stages.teachers.arithmetic import Arithmetic
from stages.teachers.probe_inputs import NUM_PROBES, PROBE_TEXTS, probe_images
from stages.teachers.probes import check_probes, compute_probes, probes_from_bytes, probes_to_bytes
from tests.corpora.stub_teacher import STUB, stub
from tests.corpora.tiny_open_clip import save_local_dir, tiny_config, tiny_weights

MODALITIES: tuple[Modality, ...] = ("image", "text")
FLOAT32 = Arithmetic("float32", "cpu AVX512 torch 2.15")

Tensors = dict[str, torch.Tensor]
Probes = dict[str, np.ndarray]


def weights_like_trained_ones(config: dict[str, Any]) -> Tensors:
    """Returns weights whose MLPs are mostly off, as trained ones are: only there do GELU and QuickGELU differ much."""
    tensors = tiny_weights(config)
    for name in tensors:
        if name.endswith("mlp.c_fc.weight"):
            tensors[name] *= 0.5
        elif name.endswith("mlp.c_fc.bias"):
            tensors[name] -= 1.5
        elif name.endswith("mlp.c_proj.weight"):
            tensors[name] *= 4
    return tensors


CONFIG = tiny_config()
WEIGHTS = weights_like_trained_ones(CONFIG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_local_dir(tmp_path_factory.mktemp("probes") / "right", CONFIG, WEIGHTS)


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return load_teacher(f"open_clip:local-dir:{folder}")


@pytest.fixture(scope="module")
def stored(teacher: Teacher) -> dict[Modality, Probes]:
    return {
        modality: probes_from_bytes(
            probes_to_bytes(compute_probes(teacher, modality, arithmetic=FLOAT32)), where="probes.npz"
        )
        for modality in MODALITIES
    }


def is_refused(stored: dict[Modality, Probes], teacher: Teacher, modality: Modality) -> bool:
    try:
        check_probes(stored[modality], teacher, modality, where="runs/a/probes.npz", arithmetic=FLOAT32)
    except RefusedError:
        return True
    return False


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_right_teacher_passes_and_again_after_it_is_loaded_anew(
    modality: Modality, teacher: Teacher, folder: Path, stored: dict[Modality, Probes]
) -> None:
    again = load_teacher(f"open_clip:local-dir:{folder}")
    for loaded in (teacher, again):
        check_probes(stored[modality], loaded, modality, where="probes.npz")
        assert np.array_equal(compute_probes(loaded, modality)["features"], stored[modality]["features"])


def in_batches(teacher: Teacher, batch_size: int) -> Teacher:
    """Returns the teacher asked for `batch_size` rows at a time, padded as an extract pads them."""

    def asked(encode: Callable[[Any], np.ndarray], rows: Any) -> np.ndarray:
        found = []
        for at in range(0, len(rows), batch_size):
            part = list(rows[at : at + batch_size])
            whole = part + [part[0]] * (batch_size - len(part))
            found.append(encode(np.stack(whole) if isinstance(rows, np.ndarray) else whole)[: len(part)])
        return np.concatenate(found)

    other = copy.copy(teacher)
    other.encode_images = partial(asked, teacher.encode_images)  # type: ignore[method-assign]
    other.encode_texts = partial(asked, teacher.encode_texts)  # type: ignore[method-assign]
    return other


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_right_teacher_is_admitted_a_hundred_times_whatever_the_batch_and_the_threads(
    modality: Modality, teacher: Teacher, stored: dict[Modality, Probes], threads: Callable[[int], None]
) -> None:
    for num_threads in (1, 2, 3, 4):
        threads(num_threads)
        for batch_size in (*range(1, 19), 24, 31, 32, 33, 48, 63, 64):
            other = in_batches(teacher, batch_size)
            check_probes(stored[modality], other, modality, where="probes.npz", arithmetic=FLOAT32)


ADMIT = """
import sys; from pathlib import Path
import torch; torch.set_num_threads(int(sys.argv[3]))
from stages.teachers.described import arithmetic_of
from stages.teachers.probes import check_probes, probes_from_bytes
from stages.teachers import load_teacher
teacher = load_teacher(sys.argv[1])
for modality in ("image", "text"):
    stored = probes_from_bytes((Path(sys.argv[2]) / modality).read_bytes(), where="probes.npz")
    assert "arithmetic" in stored
    arithmetic = arithmetic_of(teacher, "cpu", "float32")
    assert tuple(stored["arithmetic"]) == (arithmetic.precision, arithmetic.numerics)
    check_probes(stored, teacher, modality, where="probes.npz", arithmetic=arithmetic)
"""


def test_the_right_teacher_is_admitted_in_another_process(folder: Path, tmp_path: Path) -> None:
    from stages.extract.wanted import DECODING
    from stages.teachers.described import load_and_describe

    specification = f"open_clip:local-dir:{folder}"
    for modality, data in load_and_describe(specification, device="cpu", precision="float32", decoding=DECODING)[
        1
    ].items():
        (tmp_path / modality).write_bytes(data)
    command = [sys.executable, "-c", ADMIT, specification, str(tmp_path), "1"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3], timeout=200)


def test_a_lower_precision_gives_no_false_refusal(folder: Path, stored: dict[Modality, Probes]) -> None:
    low = load_teacher(f"open_clip:local-dir:{folder}", precision="float16")
    for modality in MODALITIES:
        check_probes(stored[modality], low, modality, where="probes.npz")


def perturb_one_layer(tensors: Tensors) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in ("visual.transformer.resblocks.1.mlp.c_fc.weight", "transformer.resblocks.1.mlp.c_fc.weight"):
        tensors[name] += 0.02 * tensors[name].std() * torch.randn(tensors[name].shape, generator=generator)


def overflow_float16(tensors: Tensors) -> None:
    for name in ("visual.transformer.resblocks.0.mlp.c_proj.weight", "transformer.resblocks.0.mlp.c_proj.weight"):
        tensors[name] *= 1e6


def drop_final_layer_norms(teacher: Any) -> None:
    teacher._model.visual.ln_post = torch.nn.Identity()
    teacher._model.ln_final = torch.nn.Identity()


def vision(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["model_cfg"]["vision_cfg"].update(values)


def text(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["model_cfg"]["text_cfg"].update(values)


def preprocess(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["preprocess_cfg"].update(values)


BOTH: tuple[Modality, ...] = MODALITIES
WRONG: dict[str, tuple[tuple[Modality, ...], dict[str, Callable[[Any], Any]]]] = {
    "GELU in place of QuickGELU": (BOTH, {"config": lambda config: config["model_cfg"].update(quick_gelu=False)}),
    "random weights": (BOTH, {"tensors": lambda tensors: tensors.update(tiny_weights(CONFIG, seed=9))}),
    "one layer perturbed by 2 %": (BOTH, {"tensors": perturb_one_layer}),
    "no final layer norm": (BOTH, {"teacher": drop_final_layer_norms}),
    "other heads": (BOTH, {"config": lambda config: (vision(head_width=8)(config), text(heads=4)(config))}),
    "positions swapped": (
        BOTH,
        {
            "tensors": lambda tensors: tensors.update(
                {name: tensors[name].flip(0) for name in ("visual.positional_embedding", "positional_embedding")}
            )
        },
    ),
    "bilinear resize": (("image",), {"config": preprocess(interpolation="bilinear")}),
    "resize without antialias": (("image",), {"config": preprocess(interpolation="nearest")}),
    "squashed resize": (("image",), {"config": preprocess(resize_mode="squash")}),
    "other mean": (("image",), {"config": preprocess(mean=[0.5, 0.5, 0.5])}),
    "other std": (("image",), {"config": preprocess(std=[0.5, 0.5, 0.5])}),
    "average pooling": (("image",), {"config": vision(pool_type="avg")}),
    "other cleaning": (("text",), {"config": text(tokenizer_kwargs={"clean": "canonicalize"})}),
    "case kept": (("text",), {"config": text(tokenizer_kwargs={"clean": "whitespace"})}),
    "attention to later tokens": (("text",), {"config": text(no_causal_mask=True)}),
    "shorter context": (
        ("text",),
        {
            "config": text(context_length=64),
            "tensors": lambda tensors: tensors.update(
                {"positional_embedding": tensors["positional_embedding"][:64].clone()}
            ),
        },
    ),
    "first token pooled": (("text",), {"config": text(pool_type="first")}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_teacher_is_refused(name: str, tmp_path: Path, stored: dict[Modality, Probes]) -> None:
    modalities, change = WRONG[name]
    config, tensors = copy.deepcopy(CONFIG), {key: value.clone() for key, value in WEIGHTS.items()}
    change.get("config", id)(config)
    change.get("tensors", id)(tensors)
    wrong = load_teacher(f"open_clip:local-dir:{save_local_dir(tmp_path / 'wrong', config, tensors)}")
    change.get("teacher", id)(wrong)
    refused = {modality for modality in MODALITIES if is_refused(stored, wrong, modality)}
    assert refused == set(modalities)


def test_a_teacher_whose_features_overflow_is_refused_by_name_of_the_probe(tmp_path: Path) -> None:
    tensors = {key: value.clone() for key, value in WEIGHTS.items()}
    overflow_float16(tensors)
    path = save_local_dir(tmp_path / "large", CONFIG, tensors)
    overflowing = load_teacher(f"open_clip:local-dir:{path}", precision="float16")
    for modality in MODALITIES:
        compute_probes(load_teacher(f"open_clip:local-dir:{path}"), modality)
        with pytest.raises(RefusedError, match=f"no usable feature for probe {modality} 0 .norm nan.*try float32"):
            compute_probes(overflowing, modality)


def test_a_wrong_teacher_of_equal_identity_is_told_by_its_probes_alone() -> None:
    right, wrong = load_teacher(STUB), load_teacher(stub(seed=1))
    assert right.identity == wrong.identity
    with pytest.raises(
        MismatchError,
        match=r"does not reproduce probe text \d+ of runs/a/probes.npz: cosine .*, at most 0.045 is possible",
    ):
        check_probes(compute_probes(right, "text"), wrong, "text", where="runs/a/probes.npz")


def test_a_change_that_old_probes_let_pass_is_refused_with_both_arithmetics(
    teacher: Teacher, stored: dict[Modality, Probes]
) -> None:
    changed = copy.copy(teacher)
    changed.encode_texts = lambda texts: (
        teacher.encode_texts(texts)
        * np.float32(  # type: ignore[method-assign]
            [1.002, *[1] * (teacher.dim - 1)]
        )
    )
    old = {name: value for name, value in stored["text"].items() if name != "arithmetic"}
    check_probes(old, changed, "text", where="probes.npz", arithmetic=FLOAT32)
    with pytest.raises(MismatchError, match=r"then and now: float32 on cpu AVX512 torch 2\.15 and float32"):
        check_probes(stored["text"], changed, "text", where="probes.npz", arithmetic=FLOAT32)


def test_a_refusal_names_the_probe_and_both_digests() -> None:
    stored, wrong = compute_probes(load_teacher(STUB), "image"), load_teacher(stub(mean=0.4))
    with pytest.raises(MismatchError, match=r"probe image 0 \(16 of 16\) .*pixels have digest [0-9a-f]{12}, stored is"):
        check_probes(stored, wrong, "image", where="probes.npz")


def test_features_of_another_width_are_refused_with_both_widths() -> None:
    stored = compute_probes(load_teacher(STUB), "text")
    with pytest.raises(MismatchError, match=r"gives features of width 9, probes\.npz holds 16"):
        check_probes(stored, load_teacher(stub(dim=9)), "text", where="probes.npz")


def test_probes_are_sixteen_different_pictures_and_sentences(stored: dict[Modality, Probes]) -> None:
    assert len(probe_images()) == len(set(PROBE_TEXTS)) == len(PROBE_TEXTS) == NUM_PROBES
    assert len({picture.tobytes() for picture in probe_images()}) == NUM_PROBES
    for picture in probe_images():
        assert (picture.dtype, picture.shape[2]) == (np.uint8, 3)
        assert picture.std() > 5
    for modality in MODALITIES:
        assert len(np.unique(stored[modality]["digests"], axis=0)) == NUM_PROBES
        np.testing.assert_allclose(np.linalg.norm(stored[modality]["features"], axis=1), 1, atol=1e-6)
