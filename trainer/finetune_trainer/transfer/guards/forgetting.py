"""forgetting.maxBitsPerByteIncrease: the general text costs at most so many bits per byte more."""

from .facts import Guard, increase

KEY = "forgetting.maxBitsPerByteIncrease"

FORGETTING = Guard(
    key=KEY,
    needs="data.general",
    says="bits per byte of the general text rise by {value}; at most {bound} is allowed",
    judge=lambda facts, bound: increase(KEY, facts.general, bound, missing="no general text was measured"),
)
