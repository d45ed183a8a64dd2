"""Everything that runs in a pod or on a laptop. Rooms, outermost first: cli, agent, train; planning, methods,
transfer, kernels; parallel, data, report; store. Importing this package imports no torch.

rundir       how the ranks of a node and their agent talk        blocks       the decoder blocks of a network
statistics   what is in the data, as numbers for people          signs        what libraries say when memory is short
"""
