"""What an analysis finds, from a frozen model's states to numbers. No network here, and no manifest but in `advice`.

probes     what each layer knows about the labels, and how many rows it takes to learn it
shift      how far the training rows are from general text
concepts   what each layer knows about labels of single tokens
similarity   how far tuning moved the states of each layer, from base and tuned model on the same tokens
vocabulary  how the tokenizer cuts each source, and which words are typical of the training rows
inside     what was found, as the run's record has it
advice     recommendations for the manifest, each with the numbers that are its reason
"""
