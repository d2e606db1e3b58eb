"""The store of an executor: blobs by digest, snapshots of steps, and an index of both.

The store is crash-only. New files are written under a temporary name, verified, and renamed into place, so readers
never see an incomplete file, and a process may die at any time without a clean-up being needed. Locks and leases are
flock(2) locks, which the kernel releases when their holder dies.

    ROOT/
        blobs/sha256/<hex>     content by digest, read-only
        snapshots/<n>/fs       what a step or layer changed, in the format of ``executor.snapshotter.layers``
        snapshots/<n>/work     a directory for its maker, while the snapshot is active
        cache/<name>/fs        directories of RUN --mount=type=cache
        tmp/<token>.<n>        temporary files and directories; the token names the session that made them
        tmp/partial/<digest>   interrupted downloads, which can be resumed
        leases/<token>         one for each session: the resources in use, locked while its process lives
        locks/                 the lease lock (``gate``), the index's lock, and one file for each named lock in use
        reserve                space that ``prune`` needs on a full disk
        index.db               SQLite: committed blobs and snapshots, cache records, stat cache, metadata

A file in ``blobs`` or ``snapshots`` is valid only if ``index.db`` has a row for it. To commit is to rename, then to run
one transaction; to remove is to run one transaction, then to rename to ``tmp`` and delete. A crash in between leaves
garbage that ``prune`` finds, never a row without its file.

**Leases.** What a process has found, made or committed through its ``Store`` is leased until that store is closed or
the process dies. ``prune`` in another process skips it.

**Durability.** A step's result costs no fsync. Rows have the id of the boot in which they were written and are valid in
that boot only, until ``sync`` has written the file system to disk and marked them as durable. After a power failure,
snapshots that were not synced are garbage, and such blobs are hashed again before they are used.
"""
