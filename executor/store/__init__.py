"""What an executor keeps on disk: blobs by digest, snapshots of steps, and an index of which is which.

The store is crash-only. Anything new is written under a temporary name, verified, and renamed into place; readers
never see half a thing, and a process may die at any instant without a clean-up step being owed. Locks and leases are
flock()s on file descriptors, so the kernel releases them when their holder dies.

    ROOT/
        blobs/sha256/<hex>     content by digest, read-only
        snapshots/<n>/fs       the files that one step or layer changed, as an overlay upper directory
        snapshots/<n>/work     overlay's work directory, while the snapshot is a draft
        cache/<name>/fs        directories of RUN --mount=type=cache
        tmp/<token>.<n>        files and directories in the making; the token names the session that makes them
        tmp/partial/<digest>   interrupted downloads, to be resumed
        leases/<token>         one per session: what it uses, locked while its process lives
        locks/                 the gate, the index's lock, and one file per named lock while it is held
        reserve                space that `prune` needs when there is none left
        index.db               SQLite: which blobs and snapshots are whole, cache records, known files, facts

A file in ``blobs`` or ``snapshots`` counts only when ``index.db`` has a row for it. So committing is: rename, then
one transaction; removing is: one transaction, then rename to ``tmp`` and delete. Dying in between leaves garbage that
``prune`` finds, never a row without its file.

**Leases.** What a process has looked up, made or committed through its ``Store`` stays in place until that store is
closed or the process dies: nothing has to be locked by hand. ``prune`` in another process skips it.

**Durability.** A step's result costs no fsync. Rows carry the id of the boot in which they were written and are
trusted within that boot only, until ``settle`` has written the file system to disk once and marked them as durable.
After a power failure the unsettled snapshots are garbage, and unsettled blobs are hashed again before they are used.
"""
