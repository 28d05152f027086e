"""Students of every family are distilled, evaluated, exported and reloaded, in processes that may crash."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpora.extracts import extracted_cache
from tests.corpora.held_out import write_held_out
from tests.corpora.small_corpus import write_sources
from tests.corpora.tiny_open_clip import make_tiny_open_clip

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("become_students.py")

# Stems with strided pointwise convolutions of few channels, whose backward pass crashed in channels_last.
REPARAMETRISED = [
    "timm:fastvit_t8?image_size=64",
    "timm:mobileone_s0?image_size=64",
    "timm:repvgg_a0?image_size=64",
    "open_clip:MobileCLIP2-S0?image_size=64",
]
CONVOLUTIONS = [
    "timm:resnet10t?image_size=64",
    "timm:regnetx_002?image_size=64",
    "timm:mobilenetv3_small_050?image_size=64",
    "timm:mobilenetv4_conv_small_035?image_size=64",
    "timm:efficientnet_lite0?image_size=64",
    "timm:tf_efficientnet_b0?image_size=64",
    "timm:convnext_atto?image_size=64",
    "timm:convnextv2_atto?image_size=64",
    "timm:ghostnet_050?image_size=64",
    "timm:ghostnetv3_050?image_size=64",
    "timm:hgnetv2_b0?image_size=64",
    "timm:repvit_m0_9?image_size=64",
]
MIXED = [
    "timm:levit_128s",
    "timm:efficientvit_m0",
    "timm:efficientvit_b0?image_size=64",
    "timm:efficientformerv2_s0",
    "timm:shrunk_tiny_vit_5m_224",
    "timm:mobilevit_xxs?image_size=64",
    "timm:mobilevitv2_050?image_size=64",
    "timm:edgenext_xx_small?image_size=64",
    "timm:test_coatnet?image_size=160",
    "timm:test_maxvit?image_size=160",
]
TRANSFORMERS = [
    "timm:test_vit?image_size=64",
    "timm:test_vit3?image_size=160",
    "timm:test_vit4?image_size=160",
    "timm:test_vit_relpos?image_size=160",
    "timm:vit_tiny_patch16_224",
    "timm:shrunk_vit_relpos_small_patch16_224",
    "timm:shrunk_naflexvit_base_patch16_gap?image_size=64",
    "timm:shrunk_naflexvit_base_patch16_siglip",
    "timm:shrunk_deit3_small_patch16_224",
    "timm:shrunk_eva02_tiny_patch14_224",
    "timm:shrunk_swin_tiny_patch4_window7_224",
    "timm:shrunk_swinv2_tiny_window8_256?image_size=256",
    "timm:shrunk_swinv2_cr_tiny_ns_224",
    "timm:shrunk_vit_base_patch16_siglip_224",
]
TOWERS_OF_OPEN_CLIP = [
    "open_clip:ViT-S-32-alt?image_size=64",
    "open_clip:RN50?image_size=64",
    "open_clip:convnext_tiny?image_size=64",
    "open_clip:shrunk_coca_ViT-B-32?image_size=32",
    "open_clip:shrunk_EVA02-B-16",
    "open_clip:shrunk_MobileCLIP2-B",
    "open_clip:shrunk_PE-Core-T-16-384",
    "open_clip:shrunk_ViT-B-16-SigLIP",
    "open_clip:shrunk_ViTamin-S",
    "open_clip:shrunk_swin_base_patch4_window7_224",
    "open_clip:shrunk_vit_medium_patch16_gap_256",
    "open_clip:shrunk_vit_relpos_medium_patch16_cls_224",
]
# open_clip builds these for no other size than their own, which a person hears before anything is trained.
OF_ONE_SIZE = {
    "open_clip:shrunk_EVA02-B-16?image_size=64": 224,
    "open_clip:shrunk_PE-Core-T-16-384?image_size=64": 384,
    "open_clip:shrunk_ViT-B-16-SigLIP?image_size=64": 224,
    "open_clip:shrunk_ViTamin-S?image_size=64": 224,
    "open_clip:shrunk_swin_base_patch4_window7_224?image_size=64": 224,
    "timm:shrunk_swin_tiny_patch4_window7_224?image_size=64": 224,
    "timm:shrunk_swinv2_tiny_window8_256": 256,
    "timm:shrunk_vit_relpos_small_patch16_224?image_size=64": 224,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, its cache of a few pictures and sentences, and an evaluation set, for all processes."""
    folder = tmp_path_factory.mktemp("shared")
    make_tiny_open_clip(folder / "teacher")
    sources = write_sources(folder, num_images=8, num_texts=8)
    extracted_cache(folder / "cache", *sources, teacher=f"open_clip:local-dir:{folder / 'teacher'}")
    write_held_out(folder / "data", numbers=range(100, 104))
    return folder


def become(folder: Path, specifications: list[str]) -> dict[str, str]:
    """Returns what became of every student; the last one that is named is the one that crashed, if one did."""
    command = [sys.executable, str(SCRIPT), str(folder), *specifications]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=580
    )
    assert ended.returncode == 0, f"exit {ended.returncode} after {ended.stdout}\n{ended.stderr}"
    return dict(line.split(" ", 1) for line in ended.stdout.splitlines())


def test_students_whose_stems_crashed_in_channels_last_are_distilled_evaluated_and_reloaded(folder: Path) -> None:
    assert become(folder, REPARAMETRISED) == dict.fromkeys(REPARAMETRISED, "became a student")


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [CONVOLUTIONS, MIXED, TRANSFORMERS, TOWERS_OF_OPEN_CLIP],
    ids=["convolutions", "mixed", "transformers", "towers of open_clip"],
)
def test_students_of_every_family_are_distilled_evaluated_exported_and_reloaded_in_stock_open_clip(
    folder: Path, family: list[str]
) -> None:
    assert become(folder, family) == dict.fromkeys(family, "became a student")


@pytest.mark.slow
def test_a_student_of_one_size_is_refused_another_and_told_its_own(folder: Path) -> None:
    found = become(folder, list(OF_ONE_SIZE))
    assert found.keys() == OF_ONE_SIZE.keys()
    for specification, said in found.items():
        assert said.startswith(f"refused: cannot build student {specification} for (")
        assert said.endswith(f": use image_size={OF_ONE_SIZE[specification]}, which it takes, or another architecture")
