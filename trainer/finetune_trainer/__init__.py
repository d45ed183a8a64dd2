"""Everything that runs in a pod or on a laptop. Rooms, outermost first: cli, agent, train, then methods, parallel, data,
transfer, planning and report, then store and rundir. Importing this package imports no torch."""
