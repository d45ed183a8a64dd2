"""Parallel strategies: which rank holds which weights, and how gradients are summed. Each is a file with the
protocol of `base` and a line in `registry`.

single                   one process
ddp                      all weights on every rank
fsdp                     a shard of every weight on each rank
deepspeed                ZeRO, by DeepSpeed's engine

replicated, lockstep     passes that each rank makes independently, and passes that all ranks make together
flat_adamw, adamw_8bit   AdamW over flat buffers, and with 8-bit moments
sharded_4bit             shards of a base in 4 bits
lazy_weights             weights read from their files tensor by tensor
weight_names             which tensor of a file becomes which weight
"""
