"""One rank of a run, from its manifest to a committed artifact. Read `loop` first: it is all of training.

main               a rank, as torchrun starts it
run                from the first measurement to the committed artifact
setup              from a manifest to a trainer
device             precision, strategy and micro-batch, as the device decides
pinned_inputs      the same model and data on every node and in every attempt
check_weights      a process that reports what a model's files lack, for the preflight
auto_layers        how many layers `partial` trains, where the manifest says auto
auto_replay        how much `replay` replays, where the manifest does not say
self_replay        text that the base model writes, to be replayed
resolved_spec      the spec that runs, with nothing left open
rows               the training rows as a step sees them
origin             the base model as it came, where the run adds tokens
model              micro-batches in, summed nats out
capabilities       what an architecture can do, found out by running it
full_precision     a network in float32, whatever dtype it is stored in
loop               training
loss               fused cross-entropy, without all logits at once
optimizer          the learning rate as a function of the step
sums               what a step adds up, over micro-batches and ranks
state              what a resumed run must know
checkpoint         snapshots, saved while training continues
checkpointer       saving and restoring for all ranks together
checkpoint_reader  rows of a checkpoint's tensors, read from its files
linear_probe       method probe, in place of the loop
few_shot           the base model with examples in its prompt, for a ladder
importance         what regularization.ewc holds to, from the cache or measured
activations        what regularization.drift holds to, from the cache or measured
tensor_cache       tensors that follow from model, text and seed, kept on the node
diagnose           what an analysis asks of a model
diagnosing         what spec.diagnostics asks of a run
token_states       states of chosen tokens in every layer, by one process or a gang
written            what a model writes after prompts
answering          what both models answer to held-out prompts
continual          the sequence of tasks that a run adds to
trained_rows       what it and the tasks before it were trained on
divergence         KL to the base on rows of the task
remedied           the runs that guards.maxAttempts allows, as this one reports them
prior_gain         what pretraining is worth, against random weights
scale_sweep        the scale at which an adapter is published
switched           the new adapter in one network with earlier ones
artifact_commit    the artifact's files, the run's record, and the commit
generation_config  the tokens that end a trained answer
reporter           heartbeats, progress and log lines
tracking           what experiment trackers are given of a run

Cheaper steps with the same result:

frozen_layers      the frozen layers below the lowest one that trains, as a part of the network
frozen_cache       their outputs for each row, computed once and kept on disk
compilation        decoder blocks through torch.compile
activation_checkpointing   blocks that run again for their gradients
kernel_selection   the third-party kernels that a run uses

method_support     whether a method can train a model, without its weights
exact_memory       the peak of a step, tensor by tensor, for `finetune plan --exact`
without_triton     a rank on a CPU does not import Triton
process_exit       how a rank's process ends
"""
