"""Numbers about data, and what numbers about models prove. Pure: numpy and the standard library, no files, no torch.

data           how many rows, documents and tokens a run reads; importable from here too
quantiles      quantiles of the normal, Student's t and the beta distribution
intervals      intervals and tests for paired counts, means and ratios
differences    what a comparison says: `Difference` with interval, smallest visible difference and verdict
paired         two models on the same rows: `Paired` in, `Difference` out
multiplicity   several comparisons at once: Bonferroni and Holm
calibration    whether a model's confidence is its accuracy: ECE, Brier, NLL, temperature, the paired difference
divergence     KL of the tuned from the base model, per token
transfer       slices on which something cheaper is better, by Holm's method
diversity      how varied generated text is, and by how much less than before
text_scores    scores of one generated text: exact match, ROUGE-L, valid JSON
shift          how far a text is from another: bits per byte, tokens, tokens per byte
language       a guess at the language of a text, by script and frequent words
fragmentation  how a tokenizer cuts a text: fertility, fragmented words, typical terms
vocabulary     what became of the tokenizer in a run, and how it cut the rows before and after
similarity     how alike two representations of the same tokens are: unbiased CKA
correlation    canonical correlations of the same: SVCCA, PWCCA
layers         how many of the last layers to train
transferability  how well features suit labels: LogME, H-score, TransRate, LEEP
continual      tasks in sequence: the R-matrix with ACC, BWT, FWT and forgetting

Everything is a function of the set of rows: their order, and the number of ranks that measured them, changes no bit.
"""

from finetune_trainer.statistics.data import (
    AugmentationStatistics,
    DataRecord,
    LayoutStatistics,
    ReplayedTask,
    SourceStatistics,
    SplitStatistics,
    Statistics,
)

__all__ = [
    "AugmentationStatistics",
    "DataRecord",
    "LayoutStatistics",
    "ReplayedTask",
    "SourceStatistics",
    "SplitStatistics",
    "Statistics",
]
