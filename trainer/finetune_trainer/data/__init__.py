"""From files that people wrote to the arrays that a network learns from. numpy and tokenizers, never torch.

read        files to rows; every complaint names file and line
tokenizer   the model's own tokenizer and chat template, without importing transformers
chat        which characters of a rendered conversation the assistant said
formats     rows of one format to documents: text, and the spans of it that are trained
encode      documents to tokens, with what to do about documents that are too long
corpus      one data set as flat arrays on disk, mapped into memory
split       held-out rows out of the training rows, never through a group; rows that are in two sets
load        a manifest's `data` to tokenised, cached data sets
order       which rows a step sees: a function of the step's number, so that nothing needs resuming
pack        rows to the rectangles that a network computes, documents isolated from each other
"""
