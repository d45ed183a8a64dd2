"""Where models come from and results go: one small interface over local folders and object stores. Never imports torch.

folder             the interface and its errors
opening            `open_folder(uri)`, which knows every kind of store
local              file:// and pvc://
object_store       s3://, gs:// and az:// through obstore
credentials        from a Secret's environment
errors             what a store's refusal means to a user
retries            waiting for a store that is unavailable
fetch              a file or folder, downloaded once into the cache
sources            the files that a URI means
hub                hf://
ranges             remote files that are read a few blocks at a time, without a download
prefetch           a model's weights into memory, while processes still import
locks              one process of this machine at a time
remote_models      what a remote model consists of, before it is downloaded
shared_models      the cache of models that several pods share
shared_entries     what is in it: verification, space for more
shared_leases      which models in it are in use
shared_lock        one pod at a time, on a volume that they share
models             the base model as a local folder
headers            the one reader of safetensors headers
tensors            the tensors of a model's files
fingerprints       what distinguishes one model's files from another's
weights_report     what a model's files lack, for messages
artifact           the committed result: content first, its manifest last; verification
candidate          an artifact that a guard kept back, and how it is published
manifest           what makes a folder an artifact: every file with its sha256
sequence           tasks in sequence, and the scores of all of them
trained_on         what they were trained on
checkpoints        content-addressed checkpoints of one run
checkpoint_parts   how ranks report what each of them stored of one checkpoint
attempt_logs       logs of failed attempts, for when their pods are gone
"""
