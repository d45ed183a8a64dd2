"""Kernels of others for a GPU, in place of the slower ones that are right everywhere.

    choose     which could be had: a table over the device, the packages and the job
    attention  documents of packed rows by their boundaries, instead of by a mask of all pairs
    loss       the head and its cross-entropy at once
    proof      the right answer beside the candidate's, on this device, forwards and backwards
    race       which of two is faster, on this device
    chosen     what a run computes with, once that is decided

None is trusted: one that raises, differs, or gains nothing here is left out, and the run says so and goes on without.
"""
