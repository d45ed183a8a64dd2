"""Experiment trackers: who else gets the curves of a run, its manifest, guards and the URI of its artifact.

    base         what a tracker does, and what it is given
    points       curves and results as (step, name → number); pure
    events       TensorBoard's file format; pure
    tensorboard  event files, of every run
    mlflow       where MLFLOW_TRACKING_URI is set
    wandb        Weights & Biases, where WANDB_API_KEY or WANDB_MODE is set
    background   a thread for each of them, so that none can delay a step or fail the run
    group        those that the environment asks for

Rank 0 alone has trackers. A run of several attempts is one run of a tracker, found again by the job's UID.
"""
