"""Several LoRA adapters on one base model, as servers hold them: whether each gives what it gives alone.

artifacts   from the URIs of artifacts to adapters on disk, with what their runs recorded
files       what of an adapter is checked before a network is touched: base, rank, shapes, whole files
pool        adapters in one network, through PEFT: load, switch, merge
damaged     copies of an adapter that must be refused
protocol    the test: alone and together, any order, many switches, refusals, latency
"""
