"""Every error a user can cause, in one place.

Jobs print the message of a `KinemaError` without a traceback and exit with code 2; everything else
is a bug and keeps its traceback. A message names the file, line or key and says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence

from kinema.wording import counted


class KinemaError(Exception):
    """Base of all errors caused by input, settings or surroundings rather than by a bug."""


class ConfigError(KinemaError):
    """All problems of a configuration at once, one line each."""

    def __init__(self, problems: Sequence[str], source: str = "configuration") -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{source}: {counted(len(self.problems), 'problem')}\n{lines}")

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class VideoError(KinemaError):
    """A video that cannot be used. It becomes a row of a failures table, never another clip."""

    def __init__(self, path: str, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{path}: {why}")

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return type(self), (self.path, self.why)


class NoVectorsError(VideoError):
    """A video whose codec or container gives no motion vectors."""


class ManifestError(KinemaError):
    """A list or manifest of videos is malformed; names the file and line."""


class StoreError(KinemaError):
    """A motion store lacks videos, was made with other parameters, or is damaged."""


class StorageError(KinemaError):
    """A path or URI cannot be read or written."""


class WeightsError(KinemaError):
    """Weights do not fit the model; the message carries the share of tensors that matched."""


class CheckpointError(KinemaError):
    """A training checkpoint is damaged, or belongs to another run."""


class ClusterError(KinemaError):
    """The cluster cannot give what a run asks for."""


class NonFiniteLossError(KinemaError):
    """The loss became NaN or infinite; names the step, the saved batch and the last checkpoint."""
