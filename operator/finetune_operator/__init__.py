"""The operator: observes FineTuneJobs, decides what should be, applies it. Never imports torch."""
