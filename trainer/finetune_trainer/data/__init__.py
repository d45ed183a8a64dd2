"""From files that people wrote to the arrays that a network learns from. numpy and tokenizers, pyarrow where a file
asks for it, never torch.

read        files to rows; every complaint names file and line
tokenizer   the model's own tokenizer and chat template, without importing transformers
chat        which characters of a rendered conversation the assistant said
spelling    conversations as other tools keep them, told as messages
formats     rows of one format to documents: text, and the spans of it that are trained
template    the chat template itself: conversations in, text out
classification  a label as what the assistant answers
encode      documents to tokens, with what to do about documents that are too long
corpus      one data set as flat arrays on disk, mapped into memory
writer      the arrays as they grow, and what is known about each row
embedded    tokens that the model has no embedding for
states      what frozen layers make of a corpus' rows, beside its tokens
split       held-out rows out of the training rows, never through a group; rows that are in two sets
build       all data sets of a manifest, a file at a time
cache       the builds of the last weeks, each made once
load        a manifest's `data` to tokenised, cached data sets
order       which rows a step sees: a function of the step's number, so that nothing needs resuming; weighted sources
augment     variants of training rows, a function of the epoch and the row
pack        rows to the rectangles that a network computes, documents isolated from each other
layout      how much of those is padding, before the first step
"""
