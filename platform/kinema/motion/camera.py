"""Camera motion between two frames, and flow without it (MME, appendix A; Wang and Schmid 2013).

A homography is fitted to feature matches and to corners that the flow has followed. The second
frame is warped by it onto the first, so that a still scene stays where it is, and flow is estimated
anew between the two. The homography is kept: with it the new flow also tells the old one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from kinema.motion.flow import Estimator, Flow, Grey

Matrix = npt.NDArray[np.float64]
Points = npt.NDArray[np.float32]
Features = Literal["orb", "sift"]

MAX_MATCH_SHIFT = 25.0
"""Pixels; features farther apart are taken for a wrong match."""
MAX_CORNERS = 1000
CORNER_QUALITY = 0.001
CORNER_DISTANCE = 3.0
MIN_POINTS = 50
"""With no more than these, matches and corners together, no homography is fitted."""
RANSAC_PX = 1.0
MAX_FEATURES = 500
MATCH_RATIO = 0.8
"""A match counts when its second best is this much farther away (Lowe 2004, section 7.1)."""


def camera_motion(
    prev: Grey, following: Grey, flow: Flow, min_inliers: int = 25, features: Features = "orb"
) -> Matrix:
    """The homography that takes the still scene of `prev` to where `following` shows it.

    Args:
        prev: (H, W) uint8.
        following: (H, W) uint8.
        flow: (H, W, 2) float32 from `prev` to `following`.
        min_inliers: points that must agree within 1 px; the identity is returned with no more.
        features: what is matched between the frames.

    Returns:
        (3, 3) float64, pixels of `prev` -> pixels of `following`, counted from pixel corners.
    """
    matched = _matches(prev, following, features)
    followed = _corners(prev, flow)
    source = np.concatenate([matched[0], followed[0]])
    target = np.concatenate([matched[1], followed[1]])
    if len(source) <= MIN_POINTS:
        return np.eye(3)
    cv2.setRNGSeed(0)  # RANSAC draws; the same frames must give the same result
    found, inliers = cv2.findHomography(source, target, cv2.RANSAC, RANSAC_PX)
    if found is None or int(inliers.sum()) <= min_inliers:
        return np.eye(3)
    # OpenCV counts from pixel centres
    return np.asarray(_shift(0.5) @ np.asarray(found, dtype=np.float64) @ _shift(-0.5))


def stabilised_flow(
    prev: Grey, following: Grey, camera: Matrix, estimate: Estimator, raw: Flow
) -> Flow:
    """Flow from `prev` to `following` as a camera that stands still would have seen it.

    Where the warped frame has nothing to show it takes the pixels of `prev`: no motion there.

    Args:
        prev: (H, W) uint8.
        following: (H, W) uint8.
        camera: of `camera_motion`.
        estimate: the flow's estimator.
        raw: (H, W, 2) flow between the frames as they are, returned under a camera at rest.
    """
    if np.array_equal(camera, np.eye(3)):
        return raw
    height, width = prev.shape
    centred = _shift(-0.5) @ camera @ _shift(0.5)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped, seen = (
        np.asarray(cv2.warpPerspective(image, centred, (width, height), flags=flags))
        for image in (following, np.full_like(following, 255))
    )
    return estimate(prev, np.where(seen == 255, warped, prev).astype(np.uint8))


def move(points: npt.NDArray[np.float64], camera: Matrix) -> npt.NDArray[np.float64]:
    """Points (..., 2) through homographies (3, 3), or (..., 3, 3) that broadcast against them."""
    moved = np.einsum("...ij,...j->...i", camera[..., :2], points) + camera[..., 2]
    return np.asarray(moved[..., :2] / moved[..., 2:])


def _shift(by: float) -> Matrix:
    return np.array([[1, 0, by], [0, 1, by], [0, 0, 1]], dtype=np.float64)


_DETECTORS: dict[str, Callable[[], cv2.Feature2D]] = {
    "orb": lambda: cv2.ORB.create(nfeatures=MAX_FEATURES, edgeThreshold=15, patchSize=15),
    "sift": lambda: cv2.SIFT.create(nfeatures=MAX_FEATURES),
}


def _matches(prev: Grey, following: Grey, features: Features) -> tuple[Points, Points]:
    """Positions (n, 2) of the same features in both frames."""
    detector = _DETECTORS[features]()
    nowhere = np.zeros((0, 2), np.float32)
    (points, described), (others, other_described) = (
        detector.detectAndCompute(frame, None) for frame in (prev, following)
    )
    if described is None or other_described is None or len(others) < 2:
        return nowhere, nowhere
    norm = cv2.NORM_HAMMING if features == "orb" else cv2.NORM_L2
    pairs = cv2.BFMatcher(norm).knnMatch(described, other_described, k=2)
    kept = [a for a, b in pairs if a.distance < MATCH_RATIO * b.distance]
    source = np.array([points[m.queryIdx].pt for m in kept], np.float32).reshape(-1, 2)
    target = np.array([others[m.trainIdx].pt for m in kept], np.float32).reshape(-1, 2)
    near = np.linalg.norm(target - source, axis=1) <= MAX_MATCH_SHIFT
    return source[near], target[near]


def _corners(prev: Grey, flow: Flow) -> tuple[Points, Points]:
    """Corners (n, 2) of the first frame and where the flow takes them."""
    found = cv2.goodFeaturesToTrack(prev, MAX_CORNERS, CORNER_QUALITY, CORNER_DISTANCE)
    if found is None:
        nowhere = np.zeros((0, 2), np.float32)
        return nowhere, nowhere
    corners = np.asarray(found, dtype=np.float32).reshape(-1, 2)
    column, row = np.rint(corners).astype(np.intp).T
    return corners, corners + flow[row, column]
