"""What keeps a model from forgetting while it learns: one file for each key of spec.regularization.

base        the protocols between the training loop and what is added to a step
replay      rows of general text, added to each step
kl_to_base  the divergence from the base model, on replayed rows or on training rows
l2sp        the distance from the weights that training starts from
ewc         the same, weighted by how much general text depends on each weight
fisher      these weights
drift       the change of the adapted matrices' results on general text
"""
