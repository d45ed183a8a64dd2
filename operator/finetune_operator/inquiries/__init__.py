"""What is asked beyond the watches. Each of these needs a reason, and asks no more often than it must.

inquiry           the protocol of those that ask the API server for an explanation, and the loop over them
live_read         the API server's own objects, before a decision that rests on something that is not seen
progress_poller   how far node 0's agent is
kueue_admission   why a queue does not admit a Job
job_events        why a Job has no pods
pod_events        why a pod does not run on its node
event_throttle    which of these may list events next
"""
