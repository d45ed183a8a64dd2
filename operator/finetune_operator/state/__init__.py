"""What is known of each job, and what follows from it.

views             typed views of the API server's objects      parsing           raw objects to views
view_store        the newest view of each object               cache             all stores, and the notes of jobs
observe           all that one decision may use                status            from one status to the next
ownership         whose Job, and whose pod                     pod_reports       what pods say, read strictly
version_skew      CRD and operator of different versions       agent_contact     which agents answer
cluster_features  optional kinds that are served               namespace_sync    which namespaces are in sync
notes             what else is known of a job                  timestamps        RFC 3339
usage             GPU hours, wasted ones and their cost        prices            what an hour of a GPU costs
"""
