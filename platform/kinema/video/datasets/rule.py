"""What every data set has in common."""

from __future__ import annotations

from abc import abstractmethod

from kinema.config import Config
from kinema.video.sources import Listing


class DatasetRule(Config):
    """A data set: where its files are, and a way to list them."""

    @abstractmethod
    def read(self) -> Listing:
        """Every video that the data set names, once. Annotations are read, videos are not opened.

        Raises:
            KinemaError: naming file and line of what is missing, malformed or listed twice.
        """
