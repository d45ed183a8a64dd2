"""Where models come from and results go: one small interface over local folders and object stores. No torch here.

folder        the interface, its errors, and `open_folder(uri)`
local         file:// and pvc://            objects      s3://, gs:// and az:// through obstore
credentials   from a Secret's environment   errors       what a store's refusal means to a user
patience      waiting for a store that is away
fetch         a file or folder, once, into the cache
sources       the files that a URI means     hub          hf://
ranges        files that are read where they lie, a few blocks at a time
near          a model's weights into memory, while processes still import
locks         one process of this machine at a time
models        the base model as a local folder: hf:// and all of the above
artifact      the committed result: content first, its manifest last; verification
manifest      what makes a folder an artifact: every file with its sha256
checkpoints   content-addressed checkpoints of one run
parts         how ranks tell of what each of them stored of one checkpoint
samples       what tells one model's files from another's
attempts      what failed attempts leave, for when their pods are gone
"""
