"""The images of `train_images.py`: bundled digits, or a folder with one sub-folder per class."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from command_line import InputError
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from tqdm import tqdm

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
TEST_FRACTION = 0.25
# The fewest images of a class of which a quarter is still a whole test image.
SMALLEST_CLASS = 4


@dataclass(frozen=True)
class ImageSet:
    """Images as bytes (N, C, H, W): a float copy of a large folder may not fit in memory."""

    name: str
    classes: int
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: Tensor
    deviation: Tensor

    @classmethod
    def split(cls, name: str, images: np.ndarray, labels: np.ndarray) -> "ImageSet":
        train_images, test_images, train_labels, test_labels = (
            torch.from_numpy(part)
            for part in train_test_split(
                images, labels, test_size=TEST_FRACTION, stratify=labels, random_state=0
            )
        )
        deviation, mean = torch.std_mean(train_images.float(), dim=(0, 2, 3), keepdim=True)
        return cls(
            name=name,
            classes=int(labels.max()) + 1,
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
            mean=mean,
            # Images that are all alike have no deviation to divide by.
            deviation=deviation.clamp_min(1e-6),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """The channels and the side length, in pixels, of each image."""
        return self.train_images.shape[1], self.train_images.shape[2]

    def standardize(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.deviation

    def __str__(self) -> str:
        train, test = len(self.train_labels), len(self.test_labels)
        channels, side = self.shape
        return (
            f"{self.name}: {train + test} images of {side} x {side} x {channels}, "
            f"{self.classes} classes, {train} to train on and {test} to test on"
        )


def digits() -> ImageSet:
    data = load_digits()
    return ImageSet.split("handwritten digits", data.images[:, None].astype(np.uint8), data.target)


def image_folder(folder: Path, image_size: int) -> ImageSet:
    files_of_class = [image_files(class_folder) for class_folder in class_folders(folder)]
    files = [file for class_files in files_of_class for file in class_files]
    with tqdm(files, "reading", unit="image") as progress:
        images = [read_image(file, image_size) for file in progress]
    labels = np.repeat(np.arange(len(files_of_class)), [len(files) for files in files_of_class])
    return ImageSet.split(str(folder), np.stack(images), labels)


def class_folders(folder: Path) -> list[Path]:
    layout = "give a folder with one sub-folder of images per class"
    if not folder.is_dir():
        raise InputError(f"{folder} is not an existing folder: {layout}")
    folders = [path for path in entries(folder) if path.is_dir()]
    if not folders:
        raise InputError(f"{folder} has no sub-folders: {layout}")
    if len(folders) < 2:
        raise InputError(f"{folder} has one class only, {folders[0].name!r}: {layout}, at least 2")
    return folders


def image_files(folder: Path) -> list[Path]:
    files = [path for path in entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(
            f"class folder {folder} holds no images: add some ({known}) or remove the folder"
        )
    if len(files) < SMALLEST_CLASS:
        raise InputError(
            f"class folder {folder} is too small to split into training and test images: it "
            f"holds {len(files)}, add images until there are {SMALLEST_CLASS} or remove the folder"
        )
    return files


def entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot list {folder} ({error.strerror}): make it readable") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """In 8 bits a channel. PIL itself would make white of all numbers above 255."""
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    white = 1.0 if image.mode == "F" else 65535.0  # I is what 16-bit files of some formats become
    values = np.asarray(image, dtype=np.float64)
    if not (values.min() >= 0 and values.max() <= white):  # nor are there NaNs
        raise ValueError(
            f"its pixels go from {values.min():g} to {values.max():g}, outside of 0 to {white:g}"
        )
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8)).convert("RGB")


def read_image(file: Path, image_size: int) -> np.ndarray:
    try:
        with Image.open(file) as image:
            pixels = as_rgb(image).resize((image_size, image_size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read image {file} ({error}): replace or remove it") from error
    return np.asarray(pixels).transpose(2, 0, 1)
