"""What a model can do before and after.

evaluate   loss, bits per byte and accuracy on held-out rows
records    one record per row and model, next to the artifact      compare    two artifacts on rows that both have
tables     Parquet files of artifacts, bounded
features   states of a frozen network, one vector per row       probe      linear classifiers on them
evidence   base and tuned model on the same rows: differences with intervals, by data set
calibrated calibration of both models, out of the records    scale      which scale of an adapter is published
kept       the base model's rows, for a run that resumes  references  slices against earlier artifacts
tasks      earlier tasks, measured again
by_source  the held-out rows of each source that has a name
diagnostics   what an analysis finds before a run
generated  what both models answer to held-out prompts: scores, collapse check, records
guards     bounds on these numbers                               release    whether the artifact may be published
"""
