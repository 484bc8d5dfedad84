"""Videos: which there are (manifest), what they hold (decode), what is used (sampling, augment).

sources, measure, rows -> manifest   from lists, folders or tables to a checked Parquet file
timeline, container, orientation, images -> decode   frames and motion vectors by number
sampling, augment                    the frames of a clip; its crop, flip and colours
scene, synthetic                     videos drawn with exact truth
"""
