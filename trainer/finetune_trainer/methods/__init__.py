"""Ways to adapt a model. To add one, write a file with the protocol of `base` and a line in `registry`.

full, partial                    weights of the model itself
lora, qlora, dora, adapter       next to frozen weights
ia3                              factors on what frozen weights compute
prompt, ptuning, prefix          in front of every document: what they share is in `soft`
probe                            a classifier on states of the frozen model

needs      what a method asks of trainer and model, checked before anything heavy is imported
fused      a linear layer with its low-rank update as one function
experts    what a mixture of experts leaves to adapters
called     linear layers whose weights the code of their block reads itself
fault      exceptions of a network as failures of the model
halves     attention and feed-forward of a block, by the names that models give them
merged     base and adapter as one model          servable   what serves an exported folder
source     the base model's files, for what did not train
lean       PEFT without bitsandbytes
earlier    the artifact that a run continues from        stacked    its adapter, frozen under the one that trains
frozen_adapter  what is read of that adapter's files, and why nothing can be trained on top of it
peft_layout  PEFT around a network, and its layout on disk
"""
