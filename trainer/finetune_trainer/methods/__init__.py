"""Ways to adapt a model. A new one is a file with the protocol of `base` and a line in `registry`.

full, partial                    weights of the model itself
lora, qlora, dora, adapter       beside frozen weights
prompt, ptuning, prefix          in front of every document: what they share is in `soft`
probe                            a classifier on states of the frozen model

needs      what a method asks of trainer and model, checked before anything heavy is imported
fused      a linear layer with its low-rank update as one function
experts    what a mixture of experts leaves to adapters
halves     attention and feed-forward of a block, by the names that models give them
merged     base and adapter as one model          servable   what serves an exported folder
lean       PEFT without bitsandbytes
"""
