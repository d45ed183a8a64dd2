"""Everything that runs in a pod or on a laptop. Rooms, outermost first: cli, agent, train; methods, parallel, data,
transfer, planning, report; store; rundir. Importing this package imports no torch."""
