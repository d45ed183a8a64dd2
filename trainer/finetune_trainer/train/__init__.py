"""One rank of a run, from its manifest to a committed artifact. Read `loop` first: it is training, the whole of it.

main       a rank, as torchrun starts it          run        from the first measurement to the committed artifact
setup      from a manifest to a trainer           device     precision, strategy and tokens that the device decides
inputs     model and data stay what they were     choose     what a method leaves to the data
rows       what a step sees of the rows           model      micro-batches in, summed nats out
loop       training                               loss       fused cross-entropy, without all logits at once
optimizer  the learning rate by the step          state      what a resumed run must know
checkpoint snapshots, saved while training goes on           keeper     the same for a gang
stored     a checkpoint whose rows are read where they lie
probing    method probe, in place of the loop     finish     artifact, record and commit
reporter   what the agent and the log are told

Cheaper steps, each with the same result:

below      the frozen layers below the lowest one that trains, as a part of the network
frozen     what these make of a row, computed once and kept on disk
compiled   decoder blocks through torch.compile   recompute  activation checkpointing
kernels    which kernels of others a run takes

exact      the peak of a step, tensor by tensor, for `finetune plan --exact`
lean       a rank without what its machine has no use for            leave      how its process ends
"""
