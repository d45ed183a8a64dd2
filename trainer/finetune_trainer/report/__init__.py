"""The HTML report and the model card of a run. Pure functions from a RunRecord to text.

record    RunRecord: run.json in the artifact            compare   base against tuned, in words
html      one self-contained page                         judged    its parts about what tuning changed
plots     its curves as inline SVG                        forest    changes with their intervals, likewise
xy        small charts of points as inline SVG           reliability   its parts about calibration and scale
generated its part about generated text
style     its style sheet                                 card      the artifact's README.md
layers    what a run found inside the model, and its part of the page
tasks     its part about tasks in sequence
layer_curves   the page of an analysis, with curves over the layers
remedies  the runs of guards.maxAttempts
staircase the ladder that chose the method                transferred  its part about negative transfer
"""
