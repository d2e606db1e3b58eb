"""The file systems of steps: prepared, viewed, committed and compared (containerd's Snapshotter is the model).

``snapshotter`` has the boundary, ``overlay`` and ``plain`` are what may stand behind it. Both keep a layer as a
directory in the store, in one format (``layers``), so that a store serves both. What a root file system is on this
host (``rootfs``) is for ``executor.sandbox`` alone to interpret.
"""
