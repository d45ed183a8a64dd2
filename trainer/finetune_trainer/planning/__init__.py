"""Memory before anything is held: what a run will need, by a closed form, and how much a process computes at once.

model    shapes of a causal LM, from config.json and the headers of its safetensors files
layout   names and shapes of tensors from config.json alone
memory   states, activations and loss → bytes for each process
batch    training.microBatchTokens, where the manifest leaves it open
strategy which strategy `auto` is, and how many processes share a weight
spread   what a strategy leaves of the states on a process
machine  what this machine has
devices  what GPUs can do by their data sheets, and what this machine does
speed    operations and bandwidths → seconds for a step
answering  what generated answers cost
table    all of it for each method and strategy: the rows of `finetune plan`
advice   the row to begin with, and the smallest change that makes a job fit
earlier_adapter  the frozen adapter that a job continues from, besides the model
suits    whether the method can train the model, asked of the model's class
forecast which rungs a ladder has, and what each may cost
remedies which runs guards.maxAttempts allows, and what each may cost
positions how long a sequence the model can place
quantity 80Gi → bytes
"""
