"""Where models come from and results go: one small interface over local folders and object stores. No torch here.

folder        the interface, its errors, and `open_folder(uri)`
local         file:// and pvc://            objects      s3://, gs:// and az:// through obstore
credentials   from a Secret's environment   errors       what a store's refusal means to a user
patience      waiting for a store that is away
fetch         a file or folder, once, into the cache
models        the base model as a local folder: hf:// and all of the above
artifact      the committed result: content first, its manifest last; verification
checkpoints   content-addressed checkpoints of one run
"""
