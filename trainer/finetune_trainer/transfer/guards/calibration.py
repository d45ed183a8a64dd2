"""calibration.maxIncrease: the calibration error, paired and debiased, at temperature 1, rises by at most so much."""

from .facts import Guard, increase

KEY = "calibration.maxIncrease"

CALIBRATION = Guard(
    key=KEY,
    needs="classification rows in data.test or data.validation",
    says="the calibration error rises by {value}; at most {bound} is allowed",
    judge=lambda facts, bound: increase(KEY, facts.calibration, bound, missing="no classifications were measured"),
)
