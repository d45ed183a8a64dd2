"""minGain: the main score of the test data (else of validation) improves by at least so much."""

from .facts import Guard, improvement

KEY = "minGain"

GAIN = Guard(
    key=KEY,
    needs="data.test or data.validation",
    says="the main score improves by {value}; at least {bound} is required",
    judge=lambda facts, bound: improvement(KEY, facts.main, bound, missing="neither test nor validation was measured"),
)
