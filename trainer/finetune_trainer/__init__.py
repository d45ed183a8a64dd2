"""Everything that runs in a pod or on a laptop. Packages, outermost first: cli, agent, train; planning, methods,
transfer, kernels; parallel, data, report; store. Importing this package does not import torch.

rundir              the files by which the ranks of a node and their agent communicate
decoder_blocks      the language model of a network and its decoder blocks
attention_windows   how far back the layers of a model see
random_streams      every source of random numbers in a run, by name
error_patterns      messages of libraries that mean a lost peer or too little memory
statistics          comparing two models, and counts of data
torch_api           what is used of torch below its documented surface, and the versions that have it
"""
