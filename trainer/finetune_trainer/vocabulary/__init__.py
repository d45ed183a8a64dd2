"""New tokens for a model: what spec.vocabulary does before and in a run.

bpe        the merges of a tokenizer.json, and how a word is cut by them
mining     merges learned from words and how often they occur
extension  continued BPE: which merges are appended, for terms and for frequent pairs
derived    the extended model as a folder: tokenizer, configuration and embeddings
prepared   all of it for a run, once for each content of model, settings and rows
base_rows  held-out rows as the base model's own tokenizer cuts them
rows       the rows of the embeddings that train
base_head  the head of the base model, which is measured without the new tokens; it and `rows` load torch
"""
