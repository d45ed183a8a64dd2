"""What base and tuned model answer to held-out prompts, and what that says. No torch: `train.answering` generates.

prompts   which rows are prompts, where the prompt ends, and what the reference answer is
answers   the tokens of one model in one mode, as JSON with the checkpoints too
scores    the metrics of evaluation.generate.metrics, one record each
evidence  paired differences, the collapse check, and the answers that the report shows
files     the records of all answers next to the artifact
"""
