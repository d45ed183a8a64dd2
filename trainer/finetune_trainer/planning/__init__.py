"""Memory before anything is held: what a run will need, by a closed form, and how much a process computes at once.

model    shapes of a causal LM, from config.json and the headers of its safetensors files
memory   states, activations and loss → bytes for each process
batch    training.microBatchTokens, where the manifest leaves it open
strategy which strategy `auto` is, and what a process needs when weights are sharded
machine  what this machine has
"""
