"""From the files that a user writes to the arrays that a network learns from. Uses numpy and tokenizers, pyarrow for
files that need it, and never torch.

read             files to rows; every error names file and line
json_errors      rows that are not valid JSON, reported with their column
tokenizer        the model's own tokenizer and chat template, without importing transformers
template         the chat template: conversations in, text out
template_limits  what a chat template may compute for one conversation, at most
messages         a row's messages, checked: contents, tool calls, masks
spelling         conversations as other tools write them, converted to messages
turn_ends        where a turn ends in the text that a chat template writes
chat             which characters of a rendered conversation are the assistant's
unused_fields    fields of a row that do not reach the text: refused, or ignored by data.ignoreKeys
formats          rows of one format to documents: text, and the spans of it that are trained
classification   a label as the assistant's answer
encode           documents to tokens, and what happens to documents that are too long
embedding_check  tokens that the model has no embedding for
corpus           one data set as flat arrays on disk, mapped into memory
writer           the arrays as they grow, and what is known about each row
hidden_states    outputs of frozen layers for the rows of a corpus, stored next to its tokens
split            held-out rows out of the training rows, never through a group; rows that are in two sets
halves           validation rows that tune a rung of a ladder, and those that select among rungs
few_shot         training rows as examples in the prompt of each measured row
sample           at most evaluation.maxRows documents of each held-out data set
labelled         texts with labels for single tokens
python_labels    such labels for Python source
wordnet          such labels for English words
token_sample     which tokens of which documents an analysis looks at
build            all data sets of a manifest, a file at a time
cache            results of earlier builds, each made once
load             a manifest's `data` to tokenised, cached data sets
held_out         the test data of earlier tasks
earlier_rows     a sample of their training rows, to be replayed
order            which rows a step sees, as a function of the step's number alone; weighted sources
augment          variants of training rows, as a function of the epoch and the row
pack             rows to the rectangles that a network computes, documents isolated from each other
padding          how much of those is padding, reported before the first step
"""
