"""What a run says about itself to people. Pure functions from a RunRecord to text.

record    RunRecord: run.json beside the artifact        compare   base against tuned, with a verdict for each number
html      one self-contained page                         plots     its curves as inline SVG
style     its style sheet                                 card      the artifact's README.md
"""
