"""From frames to motion: optical flow, motion boxes, the store that keeps them, a clip's boxes."""
