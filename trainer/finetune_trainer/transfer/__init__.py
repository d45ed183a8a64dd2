"""What a model can do before and after.

evaluate   loss, bits per byte and accuracy on held-out rows
features   states of a frozen network, one vector a row       probe      linear classifiers on them
"""
