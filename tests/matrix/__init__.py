"""What each method does on each family of models, found out by running it: docs/models.md is written from this.

    python -m tests.matrix                     every family and method, a quarter of an hour of one core
    python -m tests.matrix mamba llama         these families alone

Results are kept in docs/models.json, each family's in place of its older ones.

cells    one family and one method: trained, stopped and resumed, exported, loaded by transformers and PEFT
table    docs/models.md from docs/models.json, as `make generate` writes it
"""
