"""A trained student as an encoder of pictures, with the same face as a teacher's image side."""

import numpy as np
import torch
from numpy.typing import NDArray

from stages.images.preprocess import Preprocess
from stages.students.base import Student


class StudentEncoder:
    """Encodes normalised pixels with a student in evaluation mode, in float32.

    Args:
        student: moved to `device`.
        device: a torch device.
    """

    def __init__(self, student: Student, *, device: torch.device | None = None) -> None:
        self.student = student.eval().to(device or torch.device("cpu"))
        self._device = device or torch.device("cpu")

    @property
    def specification(self) -> str:
        return self.student.specification

    @property
    def preprocess(self) -> Preprocess:
        return self.student.preprocess

    def encode_images(self, pixels_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns features_BD, float32, not normalised."""
        with torch.inference_mode():
            return self.student(torch.from_numpy(pixels_BCHW).to(self._device)).float().cpu().numpy()
