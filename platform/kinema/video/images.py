"""A folder of images as a video: its jpg and png files in natural order."""

from __future__ import annotations

import os
import re

import cv2
import numpy as np
import numpy.typing as npt

from kinema import storage
from kinema.errors import StorageError, VideoError

FPS = 24.0
"""Images have no time; a manifest may say otherwise."""

CODEC = "images"
SUFFIXES = (".jpg", ".jpeg", ".png")


def is_image(path: str) -> bool:
    """Whether a file's name is that of an image."""
    return path.lower().endswith(SUFFIXES)


def natural_order(path: str) -> list[tuple[int, str]]:
    """Sorting key by which 10.jpg follows 9.jpg."""
    name = path.rpartition("/")[2]
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBERS.split(name)]


def list_images(uri: str) -> list[str]:
    """The images directly inside the folder `uri`, in natural order; [] when it is not a folder.

    Raises:
        VideoError: it is a folder without images.
    """
    path = storage.absolute(uri)
    is_local = "://" not in path
    if not (os.path.isdir(path) if is_local else _may_be_folder(path)):
        return []
    depth = path.rstrip("/").count("/") + 1
    inside = [name for name in storage.list_files(path) if name.count("/") == depth]
    found = sorted(filter(is_image, inside), key=lambda name: (natural_order(name), name))
    if not found and is_local:
        raise VideoError(uri, "is a folder without jpg or png images")
    return found


def read_image(uri: str, images: list[str], index: int) -> npt.NDArray[np.uint8]:
    """Image `index` (H, W, 3) uint8 RGB of the folder `uri`.

    Raises:
        VideoError: there is no such image, or it is damaged.
    """
    require_index(uri, images, index)
    try:
        data = np.frombuffer(storage.read_bytes(images[index]), dtype=np.uint8)
    except StorageError as error:
        raise VideoError(uri, f"cannot be opened ({error})") from error
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if picture is None:
        raise VideoError(uri, f"image {images[index].rpartition('/')[2]} is damaged")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def require_index(uri: str, images: list[str], index: int) -> None:
    """Raise VideoError when the folder `uri` has no image `index`."""
    if not 0 <= index < len(images):
        raise VideoError(uri, f"has {len(images)} frames; frame {index} was asked for")


def _may_be_folder(uri: str) -> bool:
    """Object stores have no folders to ask about; a name without a suffix is taken for one."""
    return "." not in uri.rpartition("/")[2]


_NUMBERS = re.compile(r"(\d+)")
