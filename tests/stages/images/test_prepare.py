"""A picture is prepared only where its resize stays small."""

from stages.images.prepare import CropPreparation
from stages.images.preprocess import Preprocess
from tests.corpora.pictures import encoded, noise


def test_long_pictures_are_refused_before_their_resize_explodes() -> None:
    for width, height in ((1, 1_000_000), (1_000_000, 1), (1, 200)):
        payload = encoded(noise(width, height), "PNG")
        prepared = CropPreparation(Preprocess((224, 224), (0.5,) * 3, (0.5,) * 3)).prepare(payload, None)
        assert prepared.status == ("img-too-many-pixels" if max(width, height) > 200 else "ok")
