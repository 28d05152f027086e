"""Students of every family go through distill, evaluate, export and reload, in processes that may crash."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpora.extracts import extracted_cache
from tests.corpora.held_out import write_held_out
from tests.corpora.small_corpus import write_sources
from tests.corpora.tiny_open_clip import make_tiny_open_clip

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("whole_way.py")

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
    "timm:tiny_vit_5m_224",
    "timm:mobilevit_xxs?image_size=64",
    "timm:mobilevitv2_050?image_size=64",
    "timm:edgenext_xx_small?image_size=64",
    "timm:coatnet_nano_rw_224",
    "timm:maxvit_rmlp_pico_rw_256?image_size=256",
]
TRANSFORMERS = [
    "timm:test_vit?image_size=64",
    "timm:test_vit4?image_size=64",
    "timm:vit_tiny_patch16_224",
    "timm:deit3_small_patch16_224",
    "timm:eva02_tiny_patch14_224",
    "timm:swin_tiny_patch4_window7_224",
    "timm:swinv2_cr_tiny_ns_224",
    "timm:vit_relpos_small_patch16_224",
]
TOWERS_OF_OPEN_CLIP = [
    "open_clip:ViT-S-32-alt?image_size=64",
    "open_clip:RN50?image_size=64",
    "open_clip:convnext_tiny?image_size=64",
    "open_clip:coca_ViT-B-32?image_size=32",
]
OF_ONE_SIZE = ["open_clip:ViTamin-S", "open_clip:PE-Core-T-16-384"]
# open_clip gives these backbones no other size than their own, which a user hears before anything is trained.
REFUSED = [
    "open_clip:PE-Core-T-16-384?image_size=64",
    "open_clip:ViTamin-S?image_size=64",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a teacher, its cache, and an evaluation set of eight pictures."""
    made = tmp_path_factory.mktemp("families")
    make_tiny_open_clip(made / "teacher")
    sources = write_sources(made, num_images=8, num_texts=8)
    extracted_cache(made / "cache", *sources, teacher=f"open_clip:local-dir:{made / 'teacher'}")
    write_held_out(made / "data", numbers=range(100, 108))
    return made


def become(folder: Path, specifications: list[str]) -> dict[str, str]:
    """Returns what became of every student; the last one that is named is the one that crashed, if one did."""
    command = [sys.executable, str(SCRIPT), str(folder), *specifications]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert ended.returncode == 0, f"exit {ended.returncode} after {ended.stdout}\n{ended.stderr}"
    return dict(line.split(" ", 1) for line in ended.stdout.splitlines())


def test_students_whose_stems_crashed_in_channels_last_go_the_whole_way(folder: Path) -> None:
    assert become(folder, REPARAMETRISED) == dict.fromkeys(REPARAMETRISED, "went the whole way")


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [CONVOLUTIONS, MIXED, TRANSFORMERS, TOWERS_OF_OPEN_CLIP, OF_ONE_SIZE],
    ids=["convolutions", "mixed", "transformers", "towers of open_clip", "of one size"],
)
def test_students_of_every_family_go_the_whole_way(folder: Path, family: list[str]) -> None:
    assert become(folder, family) == dict.fromkeys(family, "went the whole way")


@pytest.mark.slow
def test_a_student_that_cannot_have_the_size_asked_for_is_refused_when_it_is_built(folder: Path) -> None:
    found = become(folder, REFUSED)
    assert found.keys() == set(REFUSED)
    for specification, said in found.items():
        assert said.startswith(f"refused: cannot build student {specification} for (64, 64) pixels (")
        size = 384 if "384" in specification else 224
        assert said.endswith(f"): use image_size={size} or another architecture")
