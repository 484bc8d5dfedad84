"""Videos: which there are (manifest), what they hold (decode), what is used (sampling, augment).

datasets -> sources                  what a data set names: lists, folders, official annotations
measure, rows -> manifest            a checked Parquet file of what can be used
checks -> index                      what is doubtful about a data set; the job that makes manifests
timeline, container, orientation, images -> decode   frames and motion vectors by number
sampling, augment                    the frames of a clip; its crop, flip and colours
scene, synthetic                     videos drawn with exact truth
"""
