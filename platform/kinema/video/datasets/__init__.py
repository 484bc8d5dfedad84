"""Every kind of data set, told apart by `name`: a frozen config that lists its videos itself.

lists, folders, table      videos of one's own
ssv2, epic100, kinetics400, ucf101, hmdb51, diving48, partial_da   official annotation files
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kinema.video.datasets.diving48 import Diving48
from kinema.video.datasets.epic100 import Epic100
from kinema.video.datasets.folders import Folders
from kinema.video.datasets.hmdb51 import HMDB51
from kinema.video.datasets.kinetics400 import Kinetics400
from kinema.video.datasets.lists import Lists
from kinema.video.datasets.partial_da import PartialDA
from kinema.video.datasets.ssv2 import SSv2
from kinema.video.datasets.table import Table
from kinema.video.datasets.ucf101 import UCF101

Dataset = Annotated[
    Lists | Folders | Table | SSv2 | Epic100 | Kinetics400 | UCF101 | HMDB51 | Diving48 | PartialDA,
    Field(discriminator="name"),
]
"""Every data set there is, told apart by `name`."""
