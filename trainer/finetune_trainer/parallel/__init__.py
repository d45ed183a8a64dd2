"""Ways to be many: where weights lie, and who sums gradients. A new one is a file with the protocol of `base` and a
line in `join`.

single     one process                            ddp        all weights on every rank
fsdp       a share of every weight                deepspeed  ZeRO, by DeepSpeed's engine

whole, lockstep    passes that are a rank's own affair, and passes that all ranks make together
flat, eightbit     AdamW over flat buffers, and with moments in 8 bits
fourbit            a share of a base in 4 bits
sliced             weights read from their files piece by piece
"""
